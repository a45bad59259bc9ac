/*
 * mremap() beside a mapping that is registered with userfaultfd ends that mapping's registration.
 *
 * A and B are both registered for missing faults; nobody has touched either. B is moved to the end of A. It loses its
 * registration, as documented: the userfaultfd has not asked for UFFD_FEATURE_EVENT_REMAP. But it has merged with A
 * before that, so A loses its own too, and its missing pages read as zeros from now on, without anybody being told.
 * In the same way pages of A that were write-protected can be written.
 *
 * The userfaultfd has UFFD_FEATURE_SIGBUS: an access to a missing page fails instead of waiting, in the kernel with
 * EFAULT. Seen on Linux 6.18; no privilege needed.
 *
 * cc -o mremap_uffd_neighbour mremap_uffd_neighbour.c && ./mremap_uffd_neighbour      (1: lost, 0: not)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

static size_t page;
static int uffd, ends[2];

static int map_registered(char *at)
{
	struct uffdio_register what = {
		.range = { (unsigned long)at, 4 * page }, .mode = UFFDIO_REGISTER_MODE_MISSING };

	return mmap(at, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at ||
	       ioctl(uffd, UFFDIO_REGISTER, &what);
}

/* Is an access to this page told of? */
static int trapped(char *at)
{
	return write(ends[1], at, 1) < 0 && errno == EFAULT;
}

int main(void)
{
	char *a = (char *)0x100000000000UL, *b = (char *)0x100010000000UL;
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_SIGBUS };
	int before, after;

	page = (size_t)sysconf(_SC_PAGESIZE);
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || pipe(ends) || map_registered(a) || map_registered(b)) {
		perror("setup");
		return 2;
	}
	before = trapped(a);
	if (mremap(b, 4 * page, 4 * page, MREMAP_MAYMOVE | MREMAP_FIXED, a + 4 * page) != a + 4 * page) {
		perror("mremap");
		return 2;
	}
	after = trapped(a);
	printf("a missing page of the mapping that was not moved: %s before, %s after\n",
	       before ? "trapped" : "not trapped", after ? "trapped" : "not trapped");
	return before && !after;
}
