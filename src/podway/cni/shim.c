/* The CNI plugin as a container runtime executes it.
 *
 * It thinks nothing: it hands its CNI_* variables, its stdin and the open network namespace to the agent
 * on this node, and prints what the agent answers. It is C, and static, because a runtime may execute it
 * where there is no Python and no libc, and because it starts in half a millisecond.
 *
 * It opens CNI_NETNS itself: the path is the runtime's, and the agent may see another file system.
 *
 * When no agent answers, it speaks for it:
 *   ADD, CHECK, GC   error 11, try again later
 *   STATUS           error 50, not available
 *   DEL              success; the request is left in the spool, from which the agent takes it. A pod's end
 *                    never waits for the agent, and nothing it held is forgotten.
 * VERSION never needs the agent.
 *
 * The frames are described in frames.py, the spool in spool.py. Every name and number shared with the agent
 * comes from spec.py: hatch_build.py passes them as macros.
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef PODWAY_VERSIONS
#error "build this with `python hatch_build.py`"
#endif

static const char *const versions[] = {PODWAY_VERSIONS};
#define VERSION_COUNT (sizeof(versions) / sizeof(versions[0]))

struct request_header {
    uint32_t magic, environment, input;
    int32_t netns;
};

struct answer_header {
    uint32_t magic, status, length;
};

/* One contiguous frame: header, environment, stdin. */
struct request {
    char *frame;
    size_t length;
    size_t input; /* where stdin starts */
    int netns;    /* open, or -1 */
};

struct answer {
    uint32_t status, length;
    char *output;
    const char *step; /* what failed, and with which errno */
    int error;
};

enum outcome { ANSWERED, BROKEN, SILENT };

static const char *or_default(const char *variable, const char *otherwise)
{
    const char *value = getenv(variable);
    return value && *value ? value : otherwise;
}

static const char *or_empty(const char *variable)
{
    return or_default(variable, "");
}

/* Returns the supported version that the configuration states, else the newest. Only a key of the
 * outermost object counts: a prevResult inside has a cniVersion of its own. */
static const char *answer_version(const struct request *request)
{
    const char *at = request->frame + request->input, *end = request->frame + request->length;
    static const char key[] = "\"cniVersion\"";
    int depth = 0;

    for (; at < end; at++) {
        if (*at == '{' || *at == '[') {
            depth++;
        } else if (*at == '}' || *at == ']') {
            depth--;
        } else if (*at == '"') {
            const char *string = at;
            for (at++; at < end && *at != '"'; at++)
                if (*at == '\\')
                    at++;
            if (at >= end)
                break;
            if (depth != 1 || (size_t)(at + 1 - string) != sizeof(key) - 1 ||
                memcmp(string, key, sizeof(key) - 1))
                continue;
            do
                at++;
            while (at < end && strchr(" \t\r\n:", *at) && *at);
            for (size_t i = 0; i < VERSION_COUNT; i++) {
                size_t length = strlen(versions[i]);
                if ((size_t)(end - at) >= length + 2 && at[0] == '"' && at[length + 1] == '"' &&
                    !memcmp(at + 1, versions[i], length))
                    return versions[i];
            }
            break;
        }
    }
    return versions[VERSION_COUNT - 1];
}

static int write_whole(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t n = write(fd, data, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        data += n;
        length -= (size_t)n;
    }
    return 0;
}

/* Writes an answer to stdout. A runtime that never gets it must not take it for a success, nor for silence:
 * the exit status and stderr tell. What the agent did stays; the runtime's DEL undoes it. */
static void write_answer(const char *data, size_t length)
{
    if (write_whole(STDOUT_FILENO, data, length) == 0)
        return;
    dprintf(STDERR_FILENO, "podway: the answer cannot be written to stdout: %s\n", strerror(errno));
    exit(PODWAY_IO_FAILURE);
}

__attribute__((format(printf, 1, 2))) static void print(const char *format, ...)
{
    char text[4096];
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    write_answer(text, length < (int)sizeof(text) ? (size_t)length : sizeof(text) - 1);
}

/* Prints an error as the specification wants it, and returns the exit status. */
__attribute__((format(printf, 4, 5))) static int refuse(const struct request *request, int code,
                                                       const char *hint, const char *format, ...)
{
    char message[1024];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    /* Paths come from outside: what JSON or UTF-8 would stumble over is not worth an encoder here. */
    for (char *c = message; *c; c++)
        if (*c < ' ' || *c > '~' || *c == '"' || *c == '\\')
            *c = '?';
    print("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"%s\",\"details\":\"%s\"}\n", answer_version(request),
          code, message, hint);
    return 1;
}

static void add_environment(struct request *request)
{
    for (char **variable = environ; *variable; variable++) {
        size_t length = strlen(*variable) + 1;
        if (strncmp(*variable, "CNI_", 4))
            continue;
        if (request->length + length > sizeof(struct request_header) + PODWAY_MAX_ENVIRONMENT)
            exit(refuse(request, PODWAY_INVALID_ENVIRONMENT, "the runtime must pass less in CNI_ARGS",
                        "the CNI_* variables are longer than %d bytes", PODWAY_MAX_ENVIRONMENT));
        memcpy(request->frame + request->length, *variable, length);
        request->length += length;
    }
    request->input = request->length;
}

static void add_input(struct request *request)
{
    size_t room = request->length;

    for (;;) {
        if (request->length == room) {
            room = room * 2 + 65536;
            request->frame = realloc(request->frame, room);
            if (!request->frame)
                abort();
        }
        ssize_t n = read(STDIN_FILENO, request->frame + request->length, room - request->length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            exit(refuse(request, PODWAY_IO_FAILURE, "the runtime must write the configuration to stdin",
                        "reading stdin: %s", strerror(errno)));
        if (n == 0)
            return;
        request->length += (size_t)n;
        if (request->length - request->input > PODWAY_MAX_STDIN)
            exit(refuse(request, PODWAY_INVALID_CONFIG, "the runtime must pass a smaller configuration",
                        "the network configuration is longer than %d bytes", PODWAY_MAX_STDIN));
    }
}

static void finish(struct request *request, const char *command)
{
    struct request_header header = {PODWAY_MAGIC, (uint32_t)(request->input - sizeof(header)),
                                    (uint32_t)(request->length - request->input), -1};

    if (!strcmp(command, "ADD") || !strcmp(command, "CHECK")) {
        /* O_NONBLOCK: the path may be of anything, such as a FIFO that nobody writes to. */
        request->netns = open(or_empty("CNI_NETNS"), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        header.netns = request->netns < 0 ? errno : 0;
    }
    memcpy(request->frame, &header, sizeof(header));
}

static long long milliseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_BOOTTIME, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* Waits until the socket can be read or written. The deadline is that of the whole exchange: a wait for each
 * single byte would let an agent that answers in drops hold the runtime for hours. */
static int wait_for(int fd, short events, long long deadline)
{
    for (;;) {
        struct pollfd ready = {.fd = fd, .events = events};
        long long left = deadline - milliseconds();
        int n = left > 0 ? poll(&ready, 1, (int)left) : 0;

        if (n > 0)
            return 0;
        if (n == 0) {
            errno = ETIMEDOUT;
            return -1;
        }
        if (errno != EINTR)
            return -1;
    }
}

static int send_request(int fd, const struct request *request, long long deadline)
{
    struct iovec data = {request->frame, request->length};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};

    if (request->netns >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.header), &request->netns, sizeof(int));
    }
    while (data.iov_len) {
        if (wait_for(fd, POLLOUT, deadline) < 0)
            return -1;
        ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return -1;
        data.iov_base = (char *)data.iov_base + n;
        data.iov_len -= (size_t)n;
        message.msg_control = NULL; /* the namespace went with the first bytes */
        message.msg_controllen = 0;
    }
    return 0;
}

static int receive_whole(int fd, void *into, size_t length, long long deadline)
{
    char *at = into;

    while (length) {
        if (wait_for(fd, POLLIN, deadline) < 0)
            return -1;
        ssize_t n = recv(fd, at, length, MSG_DONTWAIT);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n == 0)
            errno = ECONNRESET;
        if (n <= 0)
            return -1;
        at += n;
        length -= (size_t)n;
    }
    return 0;
}

static int receive_answer(int fd, struct answer *answer, long long deadline)
{
    struct answer_header header;

    if (receive_whole(fd, &header, sizeof(header), deadline) < 0)
        return -1;
    if (header.magic != PODWAY_MAGIC || header.length > PODWAY_MAX_ANSWER) {
        errno = EPROTO;
        return -1;
    }
    answer->status = header.status;
    answer->length = header.length;
    answer->output = malloc(header.length + 1);
    if (!answer->output)
        abort();
    return receive_whole(fd, answer->output, header.length, deadline);
}

/* Connects; a full backlog, that of a wedged agent, is waited for, too: connect(2) then says EAGAIN, and nothing
 * but another attempt tells when there is room. */
static int connect_until(int fd, const struct sockaddr_un *address, long long deadline)
{
    static const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};

    while (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0) {
        if (errno != EAGAIN && errno != EINTR)
            return -1;
        if (milliseconds() >= deadline) {
            errno = ETIMEDOUT;
            return -1;
        }
        nanosleep(&pause, NULL);
    }
    return 0;
}

/* Asks the agent. SILENT: it took the request and may be at it still. BROKEN: there is no agent, or it
 * went away before it answered. */
static enum outcome ask(const struct request *request, int seconds, struct answer *answer)
{
    const char *path = or_default("PODWAY_CNI_SOCKET", PODWAY_SOCKET);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    long long deadline = milliseconds() + seconds * 1000LL;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    answer->step = "socket";
    if (fd >= 0 && strlen(path) >= sizeof(address.sun_path)) {
        errno = ENAMETOOLONG;
    } else if (fd >= 0) {
        strcpy(address.sun_path, path);
        answer->step = "connect";
        if (connect_until(fd, &address, deadline) == 0) {
            answer->step = "send";
            if (send_request(fd, request, deadline) == 0) {
                answer->step = "receive";
                if (receive_answer(fd, answer, deadline) == 0) {
                    close(fd);
                    return ANSWERED;
                }
            }
        }
    }
    answer->error = errno;
    if (fd >= 0)
        close(fd);
    return answer->error == ETIMEDOUT ? SILENT : BROKEN;
}

static int print_answer(const struct answer *answer)
{
    write_answer(answer->output, answer->length);
    return (int)answer->status;
}

static int report_unanswered(const struct request *request, const char *command, const struct answer *answer)
{
    int code = strcmp(command, "STATUS") ? PODWAY_TRY_AGAIN_LATER : PODWAY_NOT_AVAILABLE;

    return refuse(request, code, "see that the Podway agent runs on this node, then try again",
                  "no answer from the Podway agent at %s: %s: %s",
                  or_default("PODWAY_CNI_SOCKET", PODWAY_SOCKET), answer->step,
                  answer->error == ETIMEDOUT ? "it takes too long" : strerror(answer->error));
}

/* Writes the request into the spool. Under a temporary name first, so that the agent sees it whole. */
static int spool(const struct request *request, const char *file)
{
    const char *directory = or_default("PODWAY_CNI_SPOOL", PODWAY_SPOOL);
    char unfinished[PATH_MAX];
    int fd, error;

    if ((size_t)snprintf(unfinished, sizeof(unfinished), "%s/.XXXXXX", directory) >= sizeof(unfinished)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (mkdir(directory, 0700) < 0 && errno != EEXIST)
        return -1;
    fd = mkostemp(unfinished, O_CLOEXEC);
    if (fd < 0)
        return -1;
    /* Not synced: what the DEL would undo does not outlive a crash of the machine either. */
    if (write_whole(fd, request->frame, request->length) == 0 && close(fd) == 0 &&
        rename(unfinished, file) == 0)
        return 0;
    error = errno;
    close(fd);
    unlink(unfinished);
    errno = error;
    return -1;
}

static int delete(const struct request *request)
{
    const char *directory = or_default("PODWAY_CNI_SPOOL", PODWAY_SPOOL);
    const char *container = or_empty("CNI_CONTAINERID"), *ifname = or_empty("CNI_IFNAME");
    struct answer answer = {0};
    char file[PATH_MAX];
    enum outcome outcome = ask(request, PODWAY_DELETE_SECONDS, &answer);

    if (outcome == ANSWERED)
        return print_answer(&answer);
    /* The file is named after the attachment. What cannot be a file's name cannot be an attachment's. */
    if (!*container || *container == '.' || !*ifname || strchr(container, '/') || strchr(ifname, '/') ||
        strlen(container) + strlen(ifname) >= NAME_MAX ||
        (size_t)snprintf(file, sizeof(file), "%s/%s:%s", directory, container, ifname) >= sizeof(file))
        return refuse(request, PODWAY_INVALID_ENVIRONMENT,
                      "the container runtime must set them; see the CNI specification, Parameters",
                      "CNI_CONTAINERID or CNI_IFNAME is missing or unusable");
    if (spool(request, file) < 0) {
        /* Still a success: the kernel frees links, routes and with them the address when the namespace
         * goes, and a pod that cannot be deleted would help nobody. */
        dprintf(STDERR_FILENO, "podway: no agent, and DEL cannot be kept in %s: %s\n", directory,
                strerror(errno));
        return 0;
    }
    /* The agent may have started, and read the spool, just before the file was there. */
    if (outcome == BROKEN && ask(request, PODWAY_DELETE_SECONDS, &answer) == ANSWERED) {
        unlink(file);
        return print_answer(&answer);
    }
    dprintf(STDERR_FILENO, "podway: no agent answers; DEL is kept in %s\n", file);
    return 0;
}

static int print_versions(const struct request *request)
{
    char text[64 + 16 * VERSION_COUNT];
    int length = snprintf(text, sizeof(text), "{\"cniVersion\":\"%s\",\"supportedVersions\":[", answer_version(request));

    for (size_t i = 0; i < VERSION_COUNT; i++)
        length += snprintf(text + length, sizeof(text) - (size_t)length, "%s\"%s\"", i ? "," : "", versions[i]);
    print("%s]}\n", text);
    return 0;
}

/* Lets nothing that is opened here become stdin, stdout or stderr, should the runtime have closed one: what is
 * written to it then fails, as it should. */
static void fill_descriptors(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && fd <= STDERR_FILENO);
    close(fd);
}

int main(void)
{
    const char *command = or_empty("CNI_COMMAND");
    size_t most = sizeof(struct request_header) + PODWAY_MAX_ENVIRONMENT;
    struct request request = {malloc(most), sizeof(struct request_header), sizeof(struct request_header), -1};
    struct answer answer = {0};

    if (!request.frame)
        abort();
    fill_descriptors();
    signal(SIGPIPE, SIG_IGN); /* a runtime that closed stdout is told by the exit status, and DELs are kept */
    /* Before stdin is read: somebody at a terminal should see this, not wait. */
    if (!*command)
        return refuse(&request, PODWAY_INVALID_ENVIRONMENT,
                      "this is a CNI plugin, to be run by a container runtime; the command line is elsewhere",
                      "CNI_COMMAND is missing or empty");
    add_environment(&request);
    add_input(&request);
    finish(&request, command);
    if (!strcmp(command, "VERSION"))
        return print_versions(&request);
    if (!strcmp(command, "DEL"))
        return delete(&request);
    if (ask(&request, PODWAY_ANSWER_SECONDS, &answer) == ANSWERED)
        return print_answer(&answer);
    return report_unanswered(&request, command, &answer);
}
