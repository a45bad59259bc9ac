/*
 * mremap() of a part of a mapping whose rest cannot be cut off leaves it mapped, and accountable no more.
 *
 * After a move the source is unmapped, with its charge hidden, as that has moved along. Only a part of a VMA was moved:
 * to cut the rest off a second VMA is needed. When there is no memory for it the call succeeds, the source stays mapped
 * and its pages are charged again, but the mark that says so (VM_ACCOUNT) is not put back: when it is unmapped, nothing
 * is given back. Committed_AS stays that much too high until the machine is rebooted.
 *
 * VMAs count for the memory cgroup, so a cgroup that is full makes their allocation fail; the memory of one VMA that is
 * given back is enough for the copy, and not for the cut. With the OOM killer switched off for it (cgroup v1) system
 * calls then fail with ENOMEM. Needs root and the memory controller of cgroup v1. Seen on Linux 6.18.
 *
 * cc -o mremap_uncut_source_charge mremap_uncut_source_charge.c && ./mremap_uncut_source_charge
 * (1: leaked, 0: not, 2: cannot be shown here)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define GROUP "/sys/fs/cgroup/memory/mremap_uncut_source_charge"
#define PAGE 4096UL
#define LIMIT (16UL << 20) /* bytes, of the cgroup */
#define SIZE (100 * PAGE) /* of each source */
#define ROUNDS 1000

#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static void cannot(const char *what)
{
	perror(what);
	exit(2);
}

static void put(const char *file, const char *text)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", GROUP, file);
	fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		cannot(path);
	close(fd);
}

static long committed_kb(void)
{
	char line[128];
	long kb = -1;
	FILE *info = fopen("/proc/meminfo", "r");

	while (info && fgets(line, sizeof(line), info))
		if (sscanf(line, "Committed_AS: %ld", &kb) == 1)
			break;
	if (info)
		fclose(info);
	return kb;
}

static int *count; /* of moves that left their source as it was */

static int is_mapped(char *at)
{
	unsigned char there;

	return !mincore(at, PAGE, &there);
}

/* In the cgroup: every page of it is used up, then parts of many mappings are moved. */
static int child(void)
{
	char *sources = (char *)0x100000000000UL, *spare = sources - (1UL << 39), *place = sources + (1UL << 39), *fill;
	cpu_set_t one;
	int uncut = 0;

	alarm(30);
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	sched_setaffinity(0, sizeof(one), &one); /* what a CPU has in store stays where it is used */
	put("cgroup.procs", "0");
	fill = mmap(NULL, LIMIT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (long i = 0; i < ROUNDS; i++)
		if (mmap(spare + i * 2 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			cannot("mmap");
	for (long i = 0; i < ROUNDS; i++)
		if (mmap(sources + i * 2 * SIZE, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
		    MAP_FAILED)
			cannot("mmap");
	/* nothing is to be swapped out, nor faulted in from here on */
	if (mlockall(MCL_CURRENT | MCL_ONFAULT) || mlock(&uncut, 1) || fill == MAP_FAILED)
		cannot("mlock");
	for (unsigned long at = 0; at < LIMIT && !madvise(fill + at, PAGE, MADV_POPULATE_WRITE); at += PAGE)
		;
	for (long i = 0; i < ROUNDS; i++) {
		char *source = sources + i * 2 * SIZE, *to = place + i * 2 * PAGE;

		if (mremap(source, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) {
			munmap(spare + i * 2 * PAGE, PAGE); /* too little memory for VMAs: one more */
		} else if (is_mapped(source)) {
			uncut++;
			munmap(to, PAGE); /* as much as before */
		} /* else too much: the copy stays */
	}
	*count = uncut;
	return 0;
}

int main(void)
{
	long before, after;
	char limit[32];
	int status;

	if (mkdir(GROUP, 0755) && errno != EEXIST)
		cannot(GROUP);
	snprintf(limit, sizeof(limit), "%lu", LIMIT);
	put("memory.limit_in_bytes", limit);
	put("memory.oom_control", "1");
	count = mmap(NULL, sizeof(*count), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (count == MAP_FAILED)
		cannot("mmap");
	*count = 0;
	before = committed_kb();
	if (!fork())
		_exit(child());
	if (wait(&status) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) == 2)
		return 2;
	for (int tries = 0; rmdir(GROUP) && tries < 50; tries++)
		usleep(100000);
	after = committed_kb();
	printf("%d of %d moves left their source as it was\n", *count, ROUNDS);
	printf("Committed_AS: %ld kB before, %ld kB after, a leak of every source would be %lu kB\n", before, after,
	       ROUNDS * SIZE / 1024);
	return after - before > (long)(ROUNDS * SIZE / 1024 / 8);
}
