// SPDX-License-Identifier: Apache-2.0
// The first process of a pod's sandbox, and of a lab's node: it waits for its end, and reaps what is orphaned.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int number) {
    (void)number;
    _exit(0);
}

static void reap(int number) {
    (void)number;
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

int main(void) {
    // The first process of a PID namespace gets only the signals that it handles (man 7 pid_namespaces).
    struct sigaction ending = {.sa_handler = end}, reaping = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
    if (sigaction(SIGTERM, &ending, NULL) || sigaction(SIGINT, &ending, NULL) || sigaction(SIGCHLD, &reaping, NULL))
        return 1;
    reap(0);
    for (;;)
        pause();
}
