/*
 * The growth of a MAP_GROWSDOWN mapping that is not accountable leaks committed memory.
 *
 * Each round maps one read-only page with MAP_GROWSDOWN, which is not charged, reads 100 pages below it, which makes the
 * mapping grow, and unmaps all of it. Nothing is left mapped, so Committed_AS must be where it was. It grows by 100 pages
 * a round and stays so after the program has ended: the growth is charged without a look at VM_ACCOUNT, and an unmapping
 * gives back only what has it. A writable mapping with MAP_NORESERVE does the same.
 *
 * cc -o stack_growth_charge stack_growth_charge.c && ./stack_growth_charge      (1: leaked, 0: not)
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ROUNDS = 1000, PAGES = 100 };

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
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	char *top = (char *)0x100010000000UL, *bottom = top - PAGES * page;
	long before = committed_kb(), after;

	for (int i = 0; i < ROUNDS; i++) {
		if (mmap(top, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, -1, 0) != top) {
			perror("mmap");
			return 2;
		}
		(void)*(volatile char *)bottom;
		if (munmap(bottom, (PAGES + 1) * page)) {
			perror("munmap");
			return 2;
		}
	}
	after = committed_kb();
	printf("Committed_AS: %ld kB before, %ld kB after, a leak of every growth would be %ld kB\n", before, after,
	       ROUNDS * PAGES * (long)page / 1024);
	return after - before > ROUNDS * PAGES * (long)page / 2048;
}
