/*
 * An allocator-heavy program: vectors that grow by realloc (glibc moves large ones with mremap), arenas of several
 * threads, blocks freed in another order than they were allocated, memory given back by malloc_trim. Then, as a
 * data base does for a snapshot, it forks a child that looks at the memory while the parent goes on.
 *
 *	cc -O1 -pthread -o allocator allocator.c
 *	allocator SEED ROUNDS
 */
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define VECTORS 48
#define THREADS 3

static int rounds;

static uint32_t draw(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(*state >> 33);
}

struct store {
	uint64_t state;
	char *vectors[VECTORS];
	size_t sizes[VECTORS];
};

static void *work(void *argument)
{
	struct store *store = argument;
	char **vectors = store->vectors;
	size_t *sizes = store->sizes;

	for (int i = 0; i < rounds; i++) {
		int n = draw(&store->state) % VECTORS;
		uint32_t what = draw(&store->state) % 8;

		if (what < 5) {		/* grow: from a few bytes to a few megabytes */
			size_t wanted = sizes[n] ? sizes[n] * 2 : 64 + draw(&store->state) % 4096;
			char *grown;

			if (wanted > 4u << 20)
				wanted = 4096;
			grown = realloc(vectors[n], wanted);
			if (!grown)
				abort();
			vectors[n] = grown;
			if (wanted > sizes[n])
				memset(grown + sizes[n], i, (wanted - sizes[n]) / 4);
			sizes[n] = wanted;
		} else if (what < 7) {
			free(vectors[n]);
			vectors[n] = NULL;
			sizes[n] = 0;
		} else {
			char *block = aligned_alloc(4096, 4096 * (1 + draw(&store->state) % 64));

			if (!block)
				abort();
			memset(block, i, 4096);
			free(vectors[n]);
			vectors[n] = block;
			sizes[n] = 4096;
		}
		if (i % 256 == 255)
			malloc_trim(0);
	}
	return NULL;
}

static unsigned long look(struct store *store)
{
	unsigned long sum = 0;

	for (int n = 0; n < VECTORS; n++)
		for (size_t at = 0; at < store->sizes[n]; at += 4096)
			sum += store->vectors[n][at];
	return sum;
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
	static struct store stores[THREADS + 1];
	pthread_t threads[THREADS];
	int ends[2];
	char byte;

	mallopt(M_MMAP_THRESHOLD, 128 << 10);	/* large blocks stay mappings of their own, whatever was freed before */
	rounds = argc > 2 ? atoi(argv[2]) : 1500;
	for (int i = 0; i <= THREADS; i++)
		stores[i].state = seed * 1000 + i;
	for (int i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, work, &stores[i]);
	work(&stores[THREADS]);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	if (pipe(ends))
		return 1;
	if (fork() == 0) {
		unsigned long sum = 0;

		for (int i = 0; i <= THREADS; i++)
			sum += look(&stores[i]);
		close(ends[1]);
		_exit(read(ends[0], &byte, 1) == 0 && sum ? 0 : 1);	/* until the parent has done its part */
	}
	rounds /= 5;
	work(&stores[THREADS]);
	close(ends[1]);
	wait(NULL);
	rounds *= 4;
	work(&stores[THREADS]);
	puts("done");
	return 0;
}
