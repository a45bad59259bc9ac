/*
 * Threads that map, grow, protect, advise and unmap at the same time in one address space.
 * Usage: threads THREADS ROUNDS
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE 4096UL
#define THREADS_MAX 16

static long rounds;

static unsigned next_random(unsigned long long *state, unsigned limit)
{
	*state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (unsigned)(*state >> 33) % limit;
}

static void *work(void *argument)
{
	unsigned long long state = (unsigned long)argument * 77777 + 5;

	for (long i = 0; i < rounds; i++) {
		unsigned long length = PAGE * (1 + next_random(&state, 20));
		volatile char *area = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		void *block;

		if (area == MAP_FAILED)
			continue;
		area[0] = 1;
		area[length - 1] = 1;
		if (next_random(&state, 3) == 0)
			mprotect((void *)area, PAGE * (1 + next_random(&state, length / PAGE)), PROT_READ);
		if (next_random(&state, 4) == 0) {
			unsigned long grown = PAGE * (1 + next_random(&state, 30));
			void *moved = mremap((void *)area, length, grown, MREMAP_MAYMOVE);

			if (moved != MAP_FAILED) {
				area = moved;
				length = grown;
			}
		}
		if (next_random(&state, 3) == 0)
			madvise((void *)area, length, MADV_DONTNEED);
		block = malloc(1 + next_random(&state, 400000));
		if (block)
			*(volatile char *)block = 1;
		free(block);
		munmap((void *)area, length);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS_MAX];
	long count = argc > 1 ? atol(argv[1]) : 2;

	rounds = argc > 2 ? atol(argv[2]) : 10;
	if (count > THREADS_MAX)
		count = THREADS_MAX;
	for (long i = 0; i < count; i++)
		pthread_create(&threads[i], NULL, work, (void *)(i + 1));
	for (long i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
