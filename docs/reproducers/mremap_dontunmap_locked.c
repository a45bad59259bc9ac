/*
 * mremap() with MREMAP_DONTUNMAP of locked memory counts it twice.
 *
 * Each round maps and locks 10 pages, moves them with MREMAP_DONTUNMAP, and unmaps both places. Nothing is left mapped,
 * so VmLck must be where it was. On Linux 6.17 and later it grows by 10 pages a round: the new place is counted, and the
 * old one is unlocked without being counted less. A process that RLIMIT_MEMLOCK binds can lock nothing at last (EAGAIN
 * from MAP_LOCKED), though it has nothing locked.
 *
 * cc -o mremap_dontunmap_locked mremap_dontunmap_locked.c && ./mremap_dontunmap_locked      (1: counted twice, 0: not)
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

enum { ROUNDS = 1000, PAGES = 10 };

static long locked_kb(void)
{
	char line[256];
	long kb = -1;
	FILE *f = fopen("/proc/self/status", "r");

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "VmLck: %ld kB", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb;
}

int main(void)
{
	char *from = (char *)0x100000000000UL, *to = (char *)0x100010000000UL;
	size_t length = PAGES * (size_t)sysconf(_SC_PAGESIZE);
	long before = locked_kb(), after;
	int round;

	for (round = 0; round < ROUNDS; round++) {
		if (mmap(from, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_LOCKED,
			 -1, 0) != from) {
			perror("mmap with MAP_LOCKED");
			break;
		}
		if (mremap(from, length, length, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) != to ||
		    munmap(from, length) || munmap(to, length)) {
			perror("setup");
			return 2;
		}
	}
	after = locked_kb();
	printf("VmLck: %ld kB before, %ld kB after %d rounds, with nothing mapped\n", before, after, round);
	return after != before;
}
