// A module that only answers C_SignInit and C_Sign, as the session number says.

#include <stddef.h>
#include <string.h>

typedef unsigned long ulong;
typedef struct {
	ulong kind;
	void *parameter;
	ulong size;
} mechanism;

static mechanism seen;
static ulong pss[3];

static ulong sign_init(ulong session, mechanism *m, ulong key) {
	seen = *m;
	if (m->size == sizeof pss)
		memcpy(pss, m->parameter, sizeof pss);
	return session == 1 ? 0x60 : 0;
}

static ulong sign(ulong session, unsigned char *data, ulong size, unsigned char *signature, ulong *room) {
	switch (session) {
	case 2: // fails
		return 0x30;
	case 3: // says what there is no room for
		*room = *room + 1;
		return 0x150;
	case 4: // and claims success
		*room = *room + 1;
		return 0;
	case 5: // nothing to sign
		return data != NULL && size == 0 ? (*room = 0, 0) : 7;
	case 6: // fills the buffer
		memset(signature, 0xAB, *room);
		return 0;
	}
	// Else the answer is what was asked.
	ulong answer[7] = {seen.kind, seen.size, pss[0], pss[1], pss[2], size, data[size - 1]};
	memcpy(signature, answer, sizeof answer);
	*room = sizeof answer;
	return 0;
}

static struct {
	unsigned char version[2];
	void *function[68];
} list = {{2, 40}, {[42] = sign_init, [43] = sign}};

ulong C_GetFunctionList(void **out) {
	*out = &list;
	return 0;
}
