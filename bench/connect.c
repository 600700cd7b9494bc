// TCP between two ends: connections that ask once, round trips of a byte on one that stays, and streams.
//
//   connect server ADDRESS PORT           answer until killed
//   connect client ADDRESS PORT SECONDS   connect, ask, be answered, close, again and again: print how long one took
//                                         on average, in µs
//   connect asker ADDRESS PORT            for each line of standard input, "connections MS", "trips MS" or "stream MS":
//                                         do so for this time, and print how long one took, as median, in ns; of a
//                                         stream, how long a MiB took
//
// A client closes with a reset, so that no port waits (RFC 9293, 3.4.2).

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ASK 'x'	 // be answered, and closed
#define TALK 't' // be answered, byte by byte
#define SEND 's' // be heard, and answered once all is read
#define MOST 1000000
#define BLOCK (128 << 10)

static int on = 1;
static char block[BLOCK];

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int fail(const char *what)
{
	perror(what);
	return 1;
}

static int serve(const struct sockaddr_in *address)
{
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	char byte;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (const void *)address, sizeof(*address)) || listen(listener, 128))
		return fail("listen");
	for (;;) {
		int connection = accept(listener, NULL, NULL);

		if (connection < 0)
			continue;
		setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		while (read(connection, &byte, 1) == 1 && byte != SEND && write(connection, &byte, 1) == 1 && byte == TALK)
			;
		if (byte == SEND) {
			while (read(connection, block, sizeof(block)) > 0)
				;
			if (write(connection, &byte, 1) != 1)
				perror("answer");
		}
		close(connection);
	}
}

static int connected(const struct sockaddr_in *address)
{
	struct linger reset = { 1, 0 };
	int connection = socket(AF_INET, SOCK_STREAM, 0);

	setsockopt(connection, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (!connect(connection, (const void *)address, sizeof(*address)))
		return connection;
	close(connection);
	return -1;
}

static int ask(int connection, char byte)
{
	return write(connection, &byte, 1) == 1 && read(connection, &byte, 1) == 1 ? 0 : -1;
}

static int ask_once(const struct sockaddr_in *address)
{
	int connection = connected(address), failed;

	if (connection < 0)
		return fail("connect");
	failed = ask(connection, ASK);
	close(connection);
	return failed ? fail("ask") : 0;
}

static int client(const struct sockaddr_in *address, double seconds)
{
	long long begun = now(), took;
	long count = 0;

	do {
		if (ask_once(address))
			return 1;
		count++;
		took = now() - begun;
	} while (took < seconds * 1e9);
	printf("%.3f\n", took / 1e3 / count);
	return 0;
}

// Send for a time, until the other end has read it all. How long a MiB took, in ns; less than 0 if that failed.
static long long stream(int connection, long long end)
{
	long long begun = now(), sent = 0;
	char byte = SEND;

	if (write(connection, &byte, 1) != 1)
		return -1;
	do {
		ssize_t some = write(connection, block, sizeof(block));

		if (some < 0)
			return -1;
		sent += some;
	} while (now() < end);
	if (shutdown(connection, SHUT_WR) || read(connection, &byte, 1) != 1)
		return -1;
	return (now() - begun) * (1 << 20) / sent;
}

static int compare(const void *a, const void *b)
{
	long long one = *(const long long *)a, other = *(const long long *)b;

	return one < other ? -1 : one > other;
}

static int asker(const struct sockaddr_in *address)
{
	static long long samples[MOST];
	char what[32];
	double milliseconds;

	while (scanf("%31s %lf", what, &milliseconds) == 2) {
		long long end = now() + milliseconds * 1e6, before, after = now();
		int connection = -1;
		long count = 0;

		if (strcmp(what, "connections") && (connection = connected(address)) < 0)
			return fail("connect");
		if (!strcmp(what, "stream")) {
			long long took = stream(connection, end);

			close(connection);
			if (took < 0)
				return fail(what);
			printf("%lld\n", took);
			fflush(stdout);
			continue;
		}
		do {
			before = after;
			if (connection < 0 ? ask_once(address) : ask(connection, TALK))
				return fail(what);
			after = now();
			samples[count++] = after - before;
		} while (after < end && count < MOST);
		if (connection >= 0)
			close(connection);
		qsort(samples, count, sizeof(samples[0]), compare);
		printf("%lld\n", samples[count / 2]);
		fflush(stdout);
	}
	return 0;
}

int main(int count, char **words)
{
	struct sockaddr_in address = { .sin_family = AF_INET };

	if (count < 4 || inet_pton(AF_INET, words[2], &address.sin_addr) != 1)
		return 2;
	address.sin_port = htons(atoi(words[3]));
	if (!strcmp(words[1], "server"))
		return serve(&address);
	if (!strcmp(words[1], "asker"))
		return asker(&address);
	return count < 5 ? 2 : client(&address, atof(words[4]));
}
