// Connect, ask a byte, be answered, close: again and again. With a reset, so that no port waits (RFC 9293, 3.4.2).
//
//   connect server ADDRESS PORT           answer until killed
//   connect client ADDRESS PORT SECONDS   print how long one took on average, in µs

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static int fail(const char *what)
{
	perror(what);
	return 1;
}

static int serve(const struct sockaddr_in *address)
{
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
	char byte;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (const void *)address, sizeof(*address)) || listen(listener, 128))
		return fail("listen");
	for (;;) {
		int connection = accept(listener, NULL, NULL);

		if (connection < 0)
			continue;
		if (read(connection, &byte, 1) == 1 && write(connection, &byte, 1) != 1)
			perror("answer");
		close(connection);
	}
}

static int ask(const struct sockaddr_in *address, double seconds)
{
	struct linger reset = { 1, 0 };
	double begun = now(), took;
	long count = 0;
	char byte = 'x';

	do {
		int connection = socket(AF_INET, SOCK_STREAM, 0);

		setsockopt(connection, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		if (connect(connection, (const void *)address, sizeof(*address)))
			return fail("connect");
		if (write(connection, &byte, 1) != 1 || read(connection, &byte, 1) != 1)
			return fail("ask");
		close(connection);
		count++;
		took = now() - begun;
	} while (took < seconds);
	printf("%.3f\n", took * 1e6 / count);
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
	return count < 5 ? 2 : ask(&address, atof(words[4]));
}
