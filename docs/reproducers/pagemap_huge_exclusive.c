/*
 * /proc/PID/pagemap says of every page of a huge page whether the first one is mapped exclusively.
 *
 * Bit 56 of an entry is set where a page is mapped once. A process with a huge page forks, and the child gives up the
 * first page of it: that one is the parent's alone now, the other 511 are mapped by both. On Linux 6.15 and later the
 * parent's pagemap calls all 512 exclusive, as long as the parent maps them by one PMD entry: the entries of the
 * range are all made from its first page.
 *
 * cc -o pagemap_huge_exclusive pagemap_huge_exclusive.c && ./pagemap_huge_exclusive
 * (1: shared pages are called exclusive, 0: they are not, 2: no huge page could be had; needs no privilege)
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 512, HUGE_PAGE = PAGE * PAGES };

static int exclusive_pages(const char *start)
{
	uint64_t entries[PAGES];
	int count = 0, fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd < 0 || pread(fd, entries, sizeof entries, (off_t)((uintptr_t)start / PAGE * 8)) != sizeof entries)
		return -1;
	close(fd);
	for (int i = 0; i < PAGES; i++)
		count += (int)(entries[i] >> 56 & 1);
	return count;
}

static int has_huge_page(void)
{
	char line[256];
	long kb, huge = 0;
	FILE *f = fopen("/proc/self/smaps_rollup", "r");

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "AnonHugePages: %ld kB", &kb) == 1)
			huge = kb;
	if (f)
		fclose(f);
	return huge >= HUGE_PAGE / 1024;
}

int main(void)
{
	char *start = (char *)0x100000000000UL, byte;
	int ready[2], before, after;
	pid_t child;

	if (mmap(start, HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != start ||
	    madvise(start, HUGE_PAGE, MADV_HUGEPAGE) || pipe(ready)) {
		perror("setup");
		return 2;
	}
	*start = 1;
	if (!has_huge_page()) {
		fprintf(stderr, "no huge page: is /sys/kernel/mm/transparent_hugepage/enabled never?\n");
		return 2;
	}
	before = exclusive_pages(start);
	child = fork();
	if (child == 0) {
		munmap(start, PAGE);
		if (write(ready[1], "x", 1) != 1)
			_exit(1);
		pause();
	}
	if (child < 0 || read(ready[0], &byte, 1) != 1) {
		perror("fork");
		return 2;
	}
	after = exclusive_pages(start);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	printf("%d of %d pages exclusive before the fork, %d while a child maps all but the first\n", before, PAGES, after);
	return after > 1;
}
