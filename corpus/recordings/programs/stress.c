/*
 * Random memory calls and accesses in an arena far from everything else, in a tree of processes.
 * Accesses that fail are caught. The same seed does the same.
 * With a third argument everything is bigger, and asks for huge pages.
 * Usage: stress SEED CALLS [huge]
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define ARENA ((char *)0x200000000000UL)
#define ARENA_PAGES 40
#define HUGE_PAGES 512UL
#define DEPTH_MAX 2
#define REMEMBERED 64
#define SIGNALS_MAX 2000

static unsigned long long state;
static sigjmp_buf back;
static int signals, depth, files[3], remembered, huge;
static char *places[REMEMBERED];
static char signal_stack[65536] __attribute__((aligned(4096)));

static unsigned below(unsigned limit)
{
	state = state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (unsigned)(state >> 33) % limit;
}

static void caught(int number)
{
	(void)number;
	if (++signals > SIGNALS_MAX)
		_exit(9);
	siglongjmp(back, 1);
}

/* A page of the arena; with huge pages often one where a huge page could begin. */
static char *in_arena(void)
{
	if (!huge)
		return ARENA + PAGE * below(ARENA_PAGES);
	return ARENA + PAGE * (HUGE_PAGES * below(6) + (below(2) ? 0 : below(HUGE_PAGES)));
}

static unsigned long few_pages(unsigned limit)
{
	unsigned pages = below(limit);

	return PAGE * (huge ? below(3) ? pages * 256UL : pages + below(1000) : pages);
}

static char *anywhere(void)
{
	return remembered && below(4) == 0 ? places[below(remembered)] : in_arena();
}

static void remember(void *place)
{
	if (place == MAP_FAILED || !place)
		return;
	if (remembered < REMEMBERED)
		places[remembered++] = place;
	else
		places[below(REMEMBERED)] = place;
}

static unsigned long some_length(void)
{
	switch (below(12)) {
	case 0: return 0;
	case 1: return 512 * PAGE;
	case 2: return 513 * PAGE;
	case 3: return 1024 * PAGE;
	case 4: return below(3000);
	default: return PAGE + few_pages(8);
	}
}

static int some_prot(void)
{
	static const int prots[] = {0, 1, 3, 3, 3, 3, 5, 7, 2, 1};

	return prots[below(sizeof(prots) / sizeof(*prots))];
}

static void do_map(void)
{
	int kind = below(8), placing = below(6), file = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;
	char *place = placing < 3 ? in_arena() : placing == 4 ? NULL : anywhere();

	if (kind == 5)
		flags = MAP_SHARED | MAP_ANONYMOUS;
	if (kind > 5) {
		flags = below(2) ? MAP_PRIVATE : MAP_SHARED;
		file = files[below(3)];
	}
	flags |= placing < 3 ? MAP_FIXED : placing == 3 ? MAP_FIXED_NOREPLACE : 0;
	flags |= below(6) ? 0 : MAP_NORESERVE;
	flags |= below(12) ? 0 : MAP_STACK;
	flags |= below(12) ? 0 : MAP_POPULATE;
	flags |= below(20) ? 0 : MAP_LOCKED;
	flags |= below(20) ? 0 : MAP_GROWSDOWN;
	remember(mmap(place, some_length(), some_prot(), flags, file, PAGE * below(3)));
}

static void do_remap(void)
{
	int flags = below(10) ? (below(2) ? 1 : 3) | (below(3) ? 0 : 4) : below(10);
	unsigned long old = below(30) ? PAGE + few_pages(6) : 0;
	unsigned long new = below(15) ? (below(2) ? old : PAGE + few_pages(8)) : 512 * PAGE * (1 + below(2));
	char *from = in_arena(), *to = in_arena();

	if (remembered && below(5) == 0) {
		from = places[below(remembered)];
		old = PAGE;
	}
	remember(mremap(from, old, new, flags, to));
}

static void do_advise(void)
{
	static const int advice[] = {0, 1, 2, 3, 4, 4, 4, 8, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
				     102, 103, 102, 103, 999};

	madvise(in_arena(), few_pages(8), advice[below(sizeof(advice) / sizeof(*advice))]);
	if (huge && below(2))
		madvise(in_arena(), few_pages(12), MADV_HUGEPAGE);
}

static void do_lock(void)
{
	switch (below(4)) {
	case 0: mlock(in_arena() + below(2) * 100, few_pages(6)); break;
	case 1: munlock(in_arena(), few_pages(6)); break;
	case 2: syscall(SYS_mlock2, in_arena(), few_pages(6), below(3)); break;
	default:
		if (below(10) == 0)
			mlockall(1 + below(7));
		else if (below(3) == 0)
			munlockall();
	}
}

static void do_brk(void)
{
	static char *first;
	long change = (long)below(20 * PAGE) - 5 * (long)PAGE;
	char *now = sbrk(0);

	if (!first)
		first = now;
	if (now + change > first)
		brk(now + change);
}

static void do_access(void)
{
	char *place = anywhere();
	unsigned kind = below(9);

	if (sigsetjmp(back, 1))
		return;
	if (kind < 4)
		*(volatile char *)place = 1;
	else if (kind < 8)
		(void)*(volatile char *)place;
	else
		((void (*)(void))place)();
}

static void run(int calls);

static void do_fork(int calls)
{
	pid_t child;

	if (depth >= DEPTH_MAX || below(4))
		return;
	child = fork();
	if (child == 0) {
		depth++;
		run(calls / 6);
		_exit(0);
	}
	if (below(2)) {
		depth++;
		run(10);
		depth--;
	}
	waitpid(child, NULL, 0);
}

static void run(int calls)
{
	for (int i = 0; i < calls; i++) {
		switch (below(25)) {
		case 0 ... 4: do_map(); break;
		case 5 ... 6: munmap(in_arena(), some_length()); break;
		case 7 ... 10: do_remap(); break;
		case 11 ... 13: mprotect(in_arena(), few_pages(8), some_prot()); break;
		case 14 ... 16: do_advise(); break;
		case 17 ... 18: do_lock(); break;
		case 19: do_brk(); break;
		case 20 ... 23: do_access(); break;
		default: do_fork(calls);
		}
	}
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = caught, .sa_flags = SA_ONSTACK | SA_NODEFER};
	stack_t stack = {.ss_sp = signal_stack, .ss_size = sizeof(signal_stack)};
	static const long sizes[] = {2000, 5, 2000};

	huge = argc > 3;
	state = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	sigaltstack(&stack, NULL);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGILL, &action, NULL);
	for (int i = 0; i < 3; i++) {
		char name[] = "./stress-XXXXXX";

		files[i] = i < 2 ? mkstemp(name) : memfd_create("stress", 0);
		if (i < 2)
			unlink(name);
		if (ftruncate(files[i], PAGE * sizes[i]))
			return 1;
	}
	run(argc > 2 ? atoi(argv[2]) : 100);
	return 0;
}
