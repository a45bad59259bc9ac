// SPDX-License-Identifier: MIT
/*
 * Linux memory mappings: 6 steps, and what Linux 6.18 gives at each.
 *
 *     cc -Wall -Wextra -o test test.c && ./test
 *
 * Exit status: 0 all is as expected, 1 it is not (the first difference is printed), 2 the test cannot run here.
 * x86-64, no privileges needed.
 *
 * The workload, in pages of an arena at 0x100000000000. To see it in the emulated kernel:
 *
 *     sed -n 's/^ \*   | //p' test.c | vmafuzz assemble - -o test.msgpack && vmafuzz replay test.msgpack --design mainline
 *
 *   | world small8
 *   | mmap     addr=4 len=8 prot=rw flags=private|fixed
 *   | write    addr=5 at=1
 *   | mremap   addr=4 old_len=2 new_len=2 flags=maymove|fixed new_addr=20
 *   | read     addr=21
 *   | read     addr=4
 *   | munmap   addr=4 len=0
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(__linux__) || !defined(__x86_64__)
#error "this test is for Linux on x86-64"
#endif

#define PAGE 4096UL
#define ARENA 0x100000000000UL /* where page 0 is */
#define ARENA_PAGES 384 /* nothing else is looked at */
#define TIMEOUT 60 /* seconds, for everything */
#define PLACE 128 /* words from one place that is written to the next: four in a page */
#define SIGNALLED(signal) (-1000 - (signal)) /* result of an access that ends with a signal */

static int now = -1; /* the step that runs */
static const char *op = "(before the first step)";
static const char *expected = ""; /* layout of the arena */

static __attribute__((unused)) void *at(long page)
{
	return (void *)(ARENA + (unsigned long)page * PAGE);
}

/* ---- how it ends */

static void __attribute__((noreturn)) cannot_run(const char *why)
{
	fprintf(stderr, "cannot run: %s\n", why);
	exit(2);
}

static void __attribute__((noreturn)) differs(const char *what, const char *should, const char *is)
{
	printf("step %d: %s\n  %s expected: %s\n  %s got:      %s\n", now, op, what, should, what, is);
	exit(1);
}

static void timed_out(int signal)
{
	char text[512];
	int length = snprintf(text, sizeof(text), "step %d: %s\n  does not come to an end\n", now, op);

	(void)signal;
	if (write(STDOUT_FILENO, text, (size_t)length) < 0)
		perror("write");
	_exit(1);
}

/* ---- results */

static const char *name_of(long result, int is_page, char text[32])
{
	static const struct {
		long result;
		const char *name;
	} names[] = {
#define NAME(error) { -(error), "-" #error }
		NAME(EPERM), NAME(EAGAIN), NAME(ENOMEM), NAME(EACCES), NAME(EFAULT), NAME(EBUSY), NAME(EEXIST),
		NAME(ENODEV), NAME(EINVAL), NAME(EOVERFLOW), NAME(ENOSYS), NAME(EOPNOTSUPP),
		{ SIGNALLED(SIGSEGV), "SIGSEGV" }, { SIGNALLED(SIGBUS), "SIGBUS" },
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].result == result)
			return names[i].name;
	snprintf(text, 32, is_page && result >= 0 ? "page %ld" : "%ld", result);
	return text;
}

static void expect_result(long result, long wanted, int is_page)
{
	char should[32], is[32];

	if (result != wanted)
		differs("result", name_of(wanted, is_page, should), name_of(result, is_page, is));
}

/* A system call's 0 or -errno; an access's 0 or SIGNALLED(). */
static void expect(int result, int wanted)
{
	expect_result(result == -1 ? -errno : result, wanted, 0);
}

/* An address, given as page of the arena, or -errno. */
static void expect_page(void *result, long wanted)
{
	long address = (long)result;

	expect_result(result == MAP_FAILED ? -errno : (address - (long)ARENA) / (long)PAGE, wanted, 1);
}

/* ---- accesses */

static sigjmp_buf back;
static volatile sig_atomic_t guarded, caught;

static void on_fault(int signal, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	if (!guarded) {
		struct sigaction action = { .sa_handler = SIG_DFL };

		sigaction(signal, &action, NULL); /* it comes again, and ends the process */
		return;
	}
	guarded = 0;
	caught = signal;
	siglongjmp(back, 1);
}

static void handle_faults(void)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
}

static uint64_t loaded[PAGE / sizeof(uint64_t)]; /* the contents of the page that was loaded last */

static int load(long page)
{
	const volatile uint64_t *words = at(page);

	if (sigsetjmp(back, 1))
		return SIGNALLED(caught);
	guarded = 1;
	for (size_t i = 0; i < PAGE / sizeof(uint64_t); i++)
		loaded[i] = words[i];
	guarded = 0;
	return 0;
}

/* At the four places of the page there are these words, and nothing but zeros elsewhere. */
static void expect_words(int result, uint64_t word0, uint64_t word1, uint64_t word2, uint64_t word3)
{
	const uint64_t words[4] = { word0, word1, word2, word3 };
	char should[64], is[64];

	expect_result(result, 0, 0);
	for (size_t i = 0; i < PAGE / sizeof(uint64_t); i++) {
		uint64_t word = i % PLACE ? 0 : words[i / PLACE];

		if (loaded[i] != word) {
			snprintf(should, sizeof(should), "%#lx at byte %zu", (unsigned long)word, i * sizeof(uint64_t));
			snprintf(is, sizeof(is), "%#lx", (unsigned long)loaded[i]);
			differs("contents", should, is);
		}
	}
}

/* "place" is one of the four in the page. */
static int store(long page, int place, uint64_t value)
{
	volatile uint64_t *words = at(page);

	if (sigsetjmp(back, 1))
		return SIGNALLED(caught);
	guarded = 1;
	words[place * PLACE] = value;
	guarded = 0;
	return 0;
}

/* ---- layout */

/*
 * Writes the arena's part of /proc/self/maps as "4-12 rw-p, 20-21 r--s file0+3" (pages). Takes no memory from the C
 * library, whose heap may be where the arena is.
 */
static void read_layout(char *text, size_t size)
{
	static char maps[1 << 18];
	int fd = open("/proc/self/maps", O_RDONLY);
	size_t length = 0, got = 0;
	ssize_t more;

	*text = 0;
	if (fd < 0)
		cannot_run("no /proc/self/maps");
	while ((more = read(fd, maps + got, sizeof(maps) - 1 - got)) > 0)
		got += (size_t)more;
	close(fd);
	maps[got] = 0;
	for (char *line = maps; *line && length < size; line = strchr(line, '\n') + 1) {
		unsigned long start, end, offset, inode;
		char permissions[5];

		if (sscanf(line, "%lx-%lx %4s %lx %*s %lu", &start, &end, permissions, &offset, &inode) != 5)
			cannot_run("/proc/self/maps is not as on Linux");
		if (end <= ARENA || start >= ARENA + ARENA_PAGES * PAGE)
			continue;
		length += snprintf(text + length, size - length, "%s%ld-%ld %s", length ? ", " : "",
				   (long)(start - ARENA) / (long)PAGE, (long)(end - ARENA) / (long)PAGE, permissions);
	}
}

static void check_layout(void)
{
	char text[8192];

	read_layout(text, sizeof(text));
	if (strcmp(text, expected))
		differs("layout", expected, text);
}

/* ---- steps */

static void step(int number, const char *text)
{
	check_layout();
	now = number;
	op = text;
}

/* From here on the layout is to be this. */
static void layout(const char *text)
{
	expected = text;
}

static void workload(void)
{
	step(0, "mmap     addr=4 len=8 prot=rw flags=private|fixed");
	expect_page(mmap(at(4), 8 * PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), 4);
	layout("4-12 rw-p");

	step(1, "write    addr=5 at=1");
	expect(store(5, 1, 5), 0);

	step(2, "mremap   addr=4 old_len=2 new_len=2 flags=maymove|fixed new_addr=20");
	expect_page(mremap(at(4), 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(20)), 20);
	layout("6-12 rw-p, 20-22 rw-p");

	step(3, "read     addr=21");
	expect_words(load(21), 0, 5, 0, 0);

	step(4, "read     addr=4");
	expect(load(4), SIGNALLED(SIGSEGV));

	step(5, "munmap   addr=4 len=0");
	expect(munmap(at(4), 0), -EINVAL);

	step(6, "(the end)");
	expect_words(load(21), 0, 5, 0, 0);
}

/* ---- what it needs */

static void prepare(void)
{
	struct sigaction action = { .sa_handler = timed_out };
	char text[1024];

	if (sysconf(_SC_PAGESIZE) != PAGE)
		cannot_run("pages are not of 4096 bytes");
	read_layout(text, sizeof(text));
	if (*text)
		cannot_run("something is mapped in the arena");
	handle_faults();
	sigaction(SIGALRM, &action, NULL);
	alarm(TIMEOUT);
}

int main(void)
{
	prepare();
	workload();
	check_layout();
	printf("6 steps: all is as on Linux 6.18\n");
	return 0;
}
