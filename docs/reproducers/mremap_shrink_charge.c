/*
 * A shrinking mremap() to a fixed address leaks committed memory.
 *
 * Each round maps 101 pages, moves the first one elsewhere with old_len = 101 pages, new_len = 1 page, and unmaps it.
 * Nothing is left mapped, so Committed_AS must be where it was. On Linux 6.17 and later it grows by 100 pages a round
 * and stays so after the program has ended: the tail is uncharged when it is unmapped, and its length is then
 * charged again for the move.
 *
 * cc -o mremap_shrink_charge mremap_shrink_charge.c && ./mremap_shrink_charge      (1: leaked, 0: not)
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ROUNDS = 1000, PAGES = 101 };

static long committed_kb(void)
{
	char line[256];
	long kb = -1;
	FILE *f = fopen("/proc/meminfo", "r");

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "Committed_AS: %ld kB", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb;
}

int main(void)
{
	char *from = (char *)0x100000000000UL, *to = (char *)0x100010000000UL;
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	long before = committed_kb(), after;

	for (int i = 0; i < ROUNDS; i++) {
		if (mmap(from, PAGES * page, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != from ||
		    mremap(from, PAGES * page, page, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to ||
		    munmap(to, page)) {
			perror("setup");
			return 2;
		}
	}
	after = committed_kb();
	printf("Committed_AS: %ld kB before, %ld kB after, a leak of every tail would be %ld kB\n", before, after,
	       ROUNDS * (PAGES - 1) * (long)page / 1024);
	return after - before > ROUNDS * (PAGES - 1) * (long)page / 2048;
}
