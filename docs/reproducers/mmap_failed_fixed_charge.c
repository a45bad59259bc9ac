/*
 * A MAP_FIXED mmap() that fails leaks the committed memory of what it replaced.
 *
 * Each round maps 100 pages, then maps a file over them whose mmap hook refuses (a perf event mapped privately: EINVAL).
 * The old pages are gone by then, so Committed_AS must be where it was before the round. On Linux 6.18 it grows by 100
 * pages a round and stays so after the program has ended: the new mapping was to take over the old one's charge, so
 * that was struck from the books of the unmap, and nobody gives it back.
 *
 * cc -o mmap_failed_fixed_charge mmap_failed_fixed_charge.c && ./mmap_failed_fixed_charge      (1: leaked, 0: not)
 */
#define _GNU_SOURCE
#include <linux/perf_event.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
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
	struct perf_event_attr attr;
	char *at = (char *)0x100000000000UL;
	size_t length = PAGES * (size_t)sysconf(_SC_PAGESIZE);
	long before = committed_kb(), after;
	int fd;

	memset(&attr, 0, sizeof attr);
	attr.type = PERF_TYPE_SOFTWARE;
	attr.size = sizeof attr;
	attr.config = PERF_COUNT_SW_DUMMY;
	attr.exclude_kernel = 1;
	fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
	if (fd < 0) {
		perror("perf_event_open");
		return 2;
	}
	for (int i = 0; i < ROUNDS; i++) {
		if (mmap(at, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at ||
		    mmap(at, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) != MAP_FAILED ||
		    munmap(at, length)) {
			perror("setup");
			return 2;
		}
	}
	after = committed_kb();
	printf("Committed_AS: %ld kB before, %ld kB after, a leak of every mapping would be %ld kB\n", before, after,
	       ROUNDS * (long)length / 1024);
	return after - before > ROUNDS * (long)length / 2048;
}
