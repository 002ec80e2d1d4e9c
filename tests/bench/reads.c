/*
 * The reads that a sample of the meter takes, and nothing else: what it costs at least.
 *
 *     reads all|same ZONE...
 *
 * reads every ZONE (a powercap counter), /proc/stat, and the processes whose PIDs are given on the input, a line each, up
 * to an empty line. Descriptors stay open, as in libvirt_rapl.host. Then each line takes a sample and is answered by:
 * nanoseconds of CPU time it took, nanoseconds that the processes ran since the last one, and threads read.
 *
 * `same` reads what the meter reads on a host of one package: of a process that ran the threads of its vCPUs, and, when
 * they do not explain what it ran, the number of its threads. The line `list` lists the threads, too, as the meter does
 * once in ten seconds. `all` does that every time, and reads every thread: the plain way.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST_THREADS 64

struct thread {
    int schedstat;
    long long at;
};

struct process {
    pid_t pid;
    int task, count_of_threads;
    long long at;
    struct thread threads[MOST_THREADS];
};

static char buffer[1 << 16];
static long threads_read;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static long long nanoseconds(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now))
        die("clock_gettime");
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int open_file(const char *path, int flags)
{
    int descriptor = open(path, flags | O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        die(path);
    return descriptor;
}

static void read_once(const char *path)
{
    int descriptor = open_file(path, 0);
    ssize_t size = read(descriptor, buffer, sizeof buffer - 1);
    if (size < 0)
        die(path);
    buffer[size] = 0;
    close(descriptor);
}

static int is_wanted(struct process *process, int tid, int all)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/%d/task/%d/comm", process->pid, tid);
    read_once(path);
    return all || !strncmp(buffer, "CPU ", 4);
}

/* Lists the threads in the directory that is kept open, and puts their TIDs in `tids` where that is given. */
static int list(struct process *process, int *tids)
{
    int count = 0;
    long size;

    lseek(process->task, 0, SEEK_SET);
    while ((size = syscall(SYS_getdents64, process->task, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < size; at += ((struct dirent64 *)(buffer + at))->d_reclen) {
            int tid = atoi(((struct dirent64 *)(buffer + at))->d_name);
            if (tid && tids && count < MOST_THREADS)
                tids[count] = tid;
            count += tid != 0;
        }
    return count;
}

static long long read_thread(struct thread *thread)
{
    char text[64];
    ssize_t size = pread(thread->schedstat, text, sizeof text - 1, 0);

    threads_read++;
    if (size < 0)
        return 0; /* it has ended */
    text[size] = 0;
    long long now = strtoll(text, NULL, 10), ran = now - thread->at;
    thread->at = now;
    return ran;
}

static long long sample(struct process *process, int all, int with_list)
{
    struct stat links;
    long long now = nanoseconds(~process->pid << 3 | 2), counted = 0;
    long long ran = now - process->at;

    if (all || ran)
        for (int n = 0; n < process->count_of_threads; n++)
            counted += read_thread(&process->threads[n]);
    if (!all && counted < ran && fstat(process->task, &links))
        die("fstat");
    if (with_list)
        list(process, NULL);
    process->at = now;
    return ran;
}

static void take_up(struct process *process, const char *line, int all)
{
    int tids[MOST_THREADS];

    process->pid = atoi(line);
    snprintf(buffer, sizeof buffer, "/proc/%d/task", process->pid);
    process->task = open_file(buffer, O_DIRECTORY);
    process->at = nanoseconds(~process->pid << 3 | 2);
    int count = list(process, tids);
    for (int n = 0; n < count && n < MOST_THREADS; n++)
        if (is_wanted(process, tids[n], all)) {
            snprintf(buffer, sizeof buffer, "/proc/%d/task/%d/schedstat", process->pid, tids[n]);
            process->threads[process->count_of_threads].schedstat = open_file(buffer, 0);
            read_thread(&process->threads[process->count_of_threads++]);
        }
}

int main(int count_of_arguments, char **arguments)
{
    struct process *processes = NULL;
    size_t count = 0;
    char line[4096];

    if (count_of_arguments < 2)
        return fprintf(stderr, "usage: reads all|same ZONE...\n"), 2;
    int all = !strcmp(arguments[1], "all");
    while (fgets(line, sizeof line, stdin) && *line != '\n') {
        processes = realloc(processes, (count + 1) * sizeof *processes);
        if (!processes)
            die("realloc");
        memset(&processes[count], 0, sizeof *processes);
        take_up(&processes[count++], line, all);
    }
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        long long begin = nanoseconds(CLOCK_THREAD_CPUTIME_ID), counted = 0;
        threads_read = 0;
        for (int n = 2; n < count_of_arguments; n++) {
            read_once(arguments[n]);
            (void)strtoll(buffer, NULL, 10);
        }
        read_once("/proc/stat");
        for (size_t n = 0; n < count; n++)
            counted += sample(&processes[n], all, all || !strcmp(line, "list\n"));
        printf("%lld %lld %ld\n", nanoseconds(CLOCK_THREAD_CPUTIME_ID) - begin, counted, threads_read);
        fflush(stdout);
    }
    return 0;
}
