/*
 * madvise(MADV_GUARD_INSTALL) over a page of shared memory that userfaultfd write-protects never returns.
 *
 * The protection of a page that is not there is a marker in the page table. A guard region can replace nothing but an
 * empty entry, so the range is unmapped first, which leaves such markers where they are in a mapping of a file; then it
 * is tried again, and again. The child below spins in the kernel until it is killed.
 *
 * Seen on Linux 6.18; no privilege needed. Headers older than 6.13 lack the advice.
 *
 * cc -o guard_over_protected_page guard_over_protected_page.c && ./guard_over_protected_page      (1: spins, 0: not)
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

#define SECONDS 5

/* Exit status of the child: 0 the call returned, 2 this kernel cannot show it. */
static int install(void)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	char *memory = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register what = {
		.range = { (unsigned long)memory, page }, .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect protect = {
		.range = { (unsigned long)memory, page }, .mode = UFFDIO_WRITEPROTECT_MODE_WP };

	if (uffd < 0 || memory == MAP_FAILED || ioctl(uffd, UFFDIO_API, &api) ||
	    ioctl(uffd, UFFDIO_REGISTER, &what) || ioctl(uffd, UFFDIO_WRITEPROTECT, &protect)) {
		perror("setup");
		return 2;
	}
	if (madvise(memory, page, MADV_GUARD_INSTALL)) {
		perror("madvise(MADV_GUARD_INSTALL)");
		return 2;
	}
	return 0;
}

int main(void)
{
	int status;
	pid_t child = fork();

	if (child < 0) {
		perror("fork");
		return 2;
	}
	if (!child)
		_exit(install());
	for (int tenths = 0; tenths < 10 * SECONDS; tenths++) {
		if (waitpid(child, &status, WNOHANG) == child) {
			if (WIFEXITED(status) && !WEXITSTATUS(status))
				printf("madvise(MADV_GUARD_INSTALL) returned\n");
			return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
		}
		usleep(100000);
	}
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	printf("madvise(MADV_GUARD_INSTALL) did not return in %d seconds\n", SECONDS);
	return 1;
}
