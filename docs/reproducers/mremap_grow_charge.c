/*
 * mremap() of a growing move keeps the charge for the growth when the page tables cannot be moved.
 *
 * The growth is charged first, then the VMA is copied, then the page tables are moved. When there is no memory for tables
 * at the destination the move is undone, and the call fails with ENOMEM; the charge of the growth is given back by
 * nobody. Committed_AS stays that much too high until the machine is rebooted.
 *
 * Page tables count for the memory cgroup, so a cgroup that is full makes their allocation fail. With the OOM killer
 * switched off for it (cgroup v1) system calls then fail with ENOMEM. Needs root and the memory controller of cgroup v1.
 * Seen on Linux 6.18.
 *
 * cc -o mremap_grow_charge mremap_grow_charge.c && ./mremap_grow_charge      (1: leaked, 0: not, 2: cannot be shown here)
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

#define GROUP "/sys/fs/cgroup/memory/mremap_grow_charge"
#define PAGE 4096UL
#define LIMIT (16UL << 20) /* bytes, of the cgroup */
#define GROWTH 250 /* pages */
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

/* In the cgroup: every page of it is used up, then moves are tried that need page tables. */
static int child(void)
{
	char *source = (char *)0x100000000000UL, *fill;
	cpu_set_t one;
	int failed = 0;

	alarm(30);
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	sched_setaffinity(0, sizeof(one), &one); /* what a CPU has in store stays where it is used */
	put("cgroup.procs", "0");
	fill = mmap(NULL, LIMIT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 8; i++) /* VMAs: to be given back when there is no memory for others */
		if (mmap(source + (2 * i + 8) * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			cannot("mmap");
	if (mmap(source, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != source)
		cannot("mmap");
	*(volatile char *)source = 1;
	/* nothing is to be swapped out, nor faulted in from here on */
	if (mlockall(MCL_CURRENT | MCL_ONFAULT) || mlock(&failed, 1) || fill == MAP_FAILED)
		cannot("mlock");
	for (unsigned long at = 0; at < LIMIT && !madvise(fill + at, PAGE, MADV_POPULATE_WRITE); at += PAGE)
		;
	for (int i = 0; i < 8; i++)
		munmap(source + (2 * i + 8) * PAGE, PAGE);
	for (int round = 0; round < ROUNDS; round++)
		failed += mremap(source, PAGE, (1 + GROWTH) * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
				 source + (1UL << 39)) == MAP_FAILED;
	return failed ? 0 : 2;
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
	before = committed_kb();
	if (!fork())
		_exit(child());
	if (wait(&status) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) == 2)
		return 2;
	for (int tries = 0; rmdir(GROUP) && tries < 50; tries++)
		usleep(100000);
	after = committed_kb();
	printf("Committed_AS: %ld kB before, %ld kB after, a leak of every growth would be %lu kB\n", before, after,
	       ROUNDS * GROWTH * PAGE / 1024);
	return after - before > (long)(ROUNDS * GROWTH * PAGE / 1024 / 8);
}
