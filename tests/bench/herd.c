/*
 * A herd of stand-ins for QEMU: processes with a QEMU's threads, which sleep until they are ordered to run a little.
 *
 *     herd COUNT
 *
 * prints a PID a line. Then each line of the input is a list of threads, `0 1 2`: these threads of every process run
 * for about 20 us of CPU time each, and `done` is printed when all of them sleep again. The end of the input ends it.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RUN_NS 20000
#define STACK (64 * 1024)

static const char *const NAMES[] = {"qemu-system-x86", "CPU 0/KVM", "CPU 1/KVM", "CPU 2/KVM", "CPU 3/KVM",
                                    "call_rcu", "IO mon_iothread", "kvm-msr", "vnc_worker"};
#define THREADS ((int)(sizeof NAMES / sizeof *NAMES))

/* Shared by all processes. */
static struct {
    _Atomic unsigned round[THREADS]; /* moves when threads of that kind shall run */
    _Atomic unsigned ready;          /* threads that have begun to wait */
    _Atomic unsigned done;           /* threads that have run since the last command */
} *shared;

static void die(const char *what)
{
    perror(what);
    _exit(1);
}

static long futex(_Atomic unsigned *word, int operation, unsigned value)
{
    return syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

static long long thread_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void *live(void *argument)
{
    int kind = (int)(long)argument;
    unsigned seen = 0;

    prctl(PR_SET_NAME, NAMES[kind]);
    atomic_fetch_add(&shared->ready, 1);
    for (;;) {
        while (atomic_load(&shared->round[kind]) == seen)
            futex(&shared->round[kind], FUTEX_WAIT, seen);
        seen = atomic_load(&shared->round[kind]);
        for (long long end = thread_ns() + RUN_NS; thread_ns() < end;)
            ;
        atomic_fetch_add(&shared->done, 1);
    }
    return NULL;
}

static void start(pid_t parent)
{
    pthread_attr_t attributes;
    pthread_t thread;

    if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
        die("prctl");
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    for (long kind = 1; kind < THREADS; kind++)
        if (pthread_create(&thread, &attributes, live, (void *)kind))
            die("pthread_create");
    live((void *)0L);
}

int main(int count_of_arguments, char **arguments)
{
    unsigned count = count_of_arguments == 2 ? (unsigned)atoi(arguments[1]) : 0;
    char line[256];

    if (!count || count > 100000)
        return fprintf(stderr, "usage: herd COUNT\n"), 2;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        die("mmap");
    pid_t parent = getpid();
    for (unsigned n = 0; n < count; n++) {
        fflush(stdout);
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (!pid)
            start(parent);
        printf("%d\n", pid);
    }
    while (atomic_load(&shared->ready) < count * THREADS)
        usleep(1000);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        unsigned ordered = 0;
        atomic_store(&shared->done, 0);
        for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
            int kind = atoi(word);
            if (kind < 0 || kind >= THREADS)
                return fprintf(stderr, "no thread %d\n", kind), 2;
            atomic_fetch_add(&shared->round[kind], 1);
            futex(&shared->round[kind], FUTEX_WAKE, INT_MAX);
            ordered += count;
        }
        while (atomic_load(&shared->done) < ordered)
            usleep(1000);
        usleep(20000); /* what has run goes to sleep */
        puts("done");
        fflush(stdout);
    }
    return 0; /* its children are killed with it */
}
