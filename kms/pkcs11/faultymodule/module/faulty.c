/*
 * A PKCS#11 module that stands before another one and does to its callers what
 * bad modules do: it fails, hangs, crashes, signs wrongly, forgets sessions.
 * What it does next stands in a file of 64-bit words that it shares with a test
 * (faultymodule.go describes it); there it also counts what its callers do.
 *
 * The environment variable FAULTY_MODULE_REAL names the module behind it, and
 * FAULTY_MODULE_CONTROL the shared file.
 *
 * The module behind is protected: calls hold a lock that sessions are closed
 * and lifecycle calls are made under, so that what would crash the process is
 * counted instead, and a test can tell.
 *
 * All arguments of PKCS#11 functions are pointers or CK_ULONGs, which on LP64
 * are words of 64 bits. They are passed on as such.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long word; /* CK_ULONG, CK_RV, a handle or a pointer */

_Static_assert(sizeof(word) == 8 && sizeof(void *) == 8, "this module is for LP64");

enum {
	OK = 0x00,
	GENERAL_ERROR = 0x05,
	SESSION_CLOSED = 0xB0,
	SESSION_COUNT = 0xB1,
	SESSION_HANDLE_INVALID = 0xB3,
	BUFFER_TOO_SMALL = 0x150,
};

/*
 * The functions of PKCS#11 v2.40 in the order of CK_FUNCTION_LIST: name, number
 * of arguments, the session that the call is in (0: none), and whether it is
 * written out below (OWN) or only passed on (PASS). faultymodule.go reads this
 * table too.
 */
#define FUNCTIONS(X)                       \
	X(C_Initialize, 1, 0, OWN)             \
	X(C_Finalize, 1, 0, OWN)               \
	X(C_GetInfo, 1, 0, PASS)               \
	X(C_GetFunctionList, 1, 0, OWN)        \
	X(C_GetSlotList, 3, 0, PASS)           \
	X(C_GetSlotInfo, 2, 0, PASS)           \
	X(C_GetTokenInfo, 2, 0, OWN)           \
	X(C_GetMechanismList, 3, 0, PASS)      \
	X(C_GetMechanismInfo, 3, 0, PASS)      \
	X(C_InitToken, 4, 0, PASS)             \
	X(C_InitPIN, 3, a, PASS)               \
	X(C_SetPIN, 5, a, PASS)                \
	X(C_OpenSession, 5, 0, OWN)            \
	X(C_CloseSession, 1, a, OWN)           \
	X(C_CloseAllSessions, 1, 0, OWN)       \
	X(C_GetSessionInfo, 2, a, PASS)        \
	X(C_GetOperationState, 3, a, PASS)     \
	X(C_SetOperationState, 5, a, PASS)     \
	X(C_Login, 4, a, OWN)                  \
	X(C_Logout, 1, a, PASS)                \
	X(C_CreateObject, 4, a, PASS)          \
	X(C_CopyObject, 5, a, PASS)            \
	X(C_DestroyObject, 2, a, PASS)         \
	X(C_GetObjectSize, 3, a, PASS)         \
	X(C_GetAttributeValue, 4, a, PASS)     \
	X(C_SetAttributeValue, 4, a, PASS)     \
	X(C_FindObjectsInit, 3, a, PASS)       \
	X(C_FindObjects, 4, a, PASS)           \
	X(C_FindObjectsFinal, 1, a, PASS)      \
	X(C_EncryptInit, 3, a, PASS)           \
	X(C_Encrypt, 5, a, PASS)               \
	X(C_EncryptUpdate, 5, a, PASS)         \
	X(C_EncryptFinal, 3, a, PASS)          \
	X(C_DecryptInit, 3, a, PASS)           \
	X(C_Decrypt, 5, a, PASS)               \
	X(C_DecryptUpdate, 5, a, PASS)         \
	X(C_DecryptFinal, 3, a, PASS)          \
	X(C_DigestInit, 2, a, PASS)            \
	X(C_Digest, 5, a, PASS)                \
	X(C_DigestUpdate, 3, a, PASS)          \
	X(C_DigestKey, 2, a, PASS)             \
	X(C_DigestFinal, 3, a, PASS)           \
	X(C_SignInit, 3, a, PASS)              \
	X(C_Sign, 5, a, OWN)                   \
	X(C_SignUpdate, 3, a, PASS)            \
	X(C_SignFinal, 3, a, PASS)             \
	X(C_SignRecoverInit, 3, a, PASS)       \
	X(C_SignRecover, 5, a, PASS)           \
	X(C_VerifyInit, 3, a, PASS)            \
	X(C_Verify, 5, a, PASS)                \
	X(C_VerifyUpdate, 3, a, PASS)          \
	X(C_VerifyFinal, 3, a, PASS)           \
	X(C_VerifyRecoverInit, 3, a, PASS)     \
	X(C_VerifyRecover, 5, a, PASS)         \
	X(C_DigestEncryptUpdate, 5, a, PASS)   \
	X(C_DecryptDigestUpdate, 5, a, PASS)   \
	X(C_SignEncryptUpdate, 5, a, PASS)     \
	X(C_DecryptVerifyUpdate, 5, a, PASS)   \
	X(C_GenerateKey, 5, a, PASS)           \
	X(C_GenerateKeyPair, 8, a, PASS)       \
	X(C_WrapKey, 6, a, PASS)               \
	X(C_UnwrapKey, 8, a, PASS)             \
	X(C_DeriveKey, 6, a, PASS)             \
	X(C_SeedRandom, 3, a, PASS)            \
	X(C_GenerateRandom, 3, a, PASS)        \
	X(C_GetFunctionStatus, 1, a, PASS)     \
	X(C_CancelFunction, 1, a, PASS)        \
	X(C_WaitForSlotEvent, 3, 0, PASS)

#define P1 word a
#define P2 P1, word b
#define P3 P2, word c
#define P4 P3, word d
#define P5 P4, word e
#define P6 P5, word f
#define P7 P6, word g
#define P8 P7, word h
#define A1 a
#define A2 A1, b
#define A3 A2, c
#define A4 A3, d
#define A5 A4, e
#define A6 A5, f
#define A7 A6, g
#define A8 A7, h

#define INDEX(name, n, session, kind) i_##name,
enum { FUNCTIONS(INDEX) COUNT };

/* CK_FUNCTION_LIST */
struct list {
	unsigned char major, minor;
	void *call[COUNT];
};

/* The shared file. Numbers that count down are ALL for "every one". */
#define ALL UINT64_MAX

struct control {
	/* What the test asks for. */
	_Atomic uint64_t close_sessions; /* 1: all sessions of this process are closed before the next call */
	_Atomic uint64_t log_out;        /* 1: the user is logged out before the next call */
	_Atomic uint64_t session_limit;  /* C_OpenSession fails beyond it; 0: none */
	_Atomic uint64_t flags_set;      /* added to what C_GetTokenInfo says, */
	_Atomic uint64_t flags_clear;    /* after these were taken away */
	_Atomic uint64_t twist;          /* so many signatures get a wrong bit */
	_Atomic uint64_t hang_ms;        /* how long a call hangs; 0: until release changes */
	_Atomic uint64_t release;
	/* What this module says. */
	_Atomic uint64_t open;        /* sessions, of the process that changed it last */
	_Atomic uint64_t open_most;
	_Atomic uint64_t overlaps;    /* calls in a session that another call was in */
	_Atomic uint64_t intrusions;  /* lifecycle calls with others inside, and the other way round */
	_Atomic uint64_t hanging;     /* calls that hang now */
	_Atomic uint64_t refused;     /* logins refused for their PIN */
	_Atomic uint64_t spare[18];
	/* Both, of each function. */
	struct {
		_Atomic uint64_t calls, failed;
		_Atomic uint64_t fail, code; /* so many calls fail, with this code */
		_Atomic uint64_t hang;       /* so many calls hang */
		_Atomic uint64_t crash;      /* so many calls crash the process */
		_Atomic uint64_t spare[2];
	} of[COUNT];
};

static struct control *_Atomic control;
static struct list *_Atomic behind;

/* The lock around the module behind. Who waits to be alone goes first. */
#ifdef PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP
static pthread_rwlock_t lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
#else
static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
#endif

static atomic_long inside; /* calls, those that hang too */
static atomic_int alone;   /* a lifecycle call is running */

/* The sessions of this process. */
#define MOST 65536
static pthread_mutex_t table = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static struct { word handle, slot; long busy; } sessions[MOST];
static word opened;

/* real calls the function f of the module behind. */
#define real(n, f) ((word(*)(P##n))behind->call[f])

static word close_session(word a) { return real(1, i_C_CloseSession)(a); }
static word close_all(word a) { return real(1, i_C_CloseAllSessions)(a); }
static word log_out(word a) { return real(1, i_C_Logout)(a); }

/* remember and forget keep the table. The caller holds it. */
static void publish(void)
{
	atomic_store(&control->open, opened);
	if (opened > atomic_load(&control->open_most))
		atomic_store(&control->open_most, opened);
}

static void forget_at(word i)
{
	sessions[i] = sessions[--opened];
	publish();
}

static void forget(word handle)
{
	for (word i = 0; i < opened; i++)
		if (sessions[i].handle == handle) {
			forget_at(i);
			return;
		}
}

static void forget_slot(word slot)
{
	for (word i = 0; i < opened;)
		if (sessions[i].slot == slot)
			forget_at(i);
		else
			i++;
}

/* occupy notes a call that enters a session (+1) or leaves it (-1). */
static void occupy(word session, int change)
{
	pthread_mutex_lock(&table);
	for (word i = 0; i < opened; i++)
		if (sessions[i].handle == session) {
			if (change > 0 && sessions[i].busy > 0)
				atomic_fetch_add(&control->overlaps, 1);
			sessions[i].busy += change;
			break;
		}
	pthread_mutex_unlock(&table);
}

/* take counts *left down and reports whether there was something left. */
static int take(_Atomic uint64_t *left)
{
	uint64_t n = atomic_load(left);
	while (n != 0 && n != ALL)
		if (atomic_compare_exchange_weak(left, &n, n - 1))
			return 1;
	return n != 0;
}

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void hang(void)
{
	uint64_t release = atomic_load(&control->release), ms = atomic_load(&control->hang_ms);
	uint64_t until = ms == 0 ? UINT64_MAX : now_ms() + ms;
	atomic_fetch_add(&control->hanging, 1);
	while (atomic_load(&control->release) == release && now_ms() < until)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	atomic_fetch_sub(&control->hanging, 1);
}

static void crash(void)
{
	volatile int *volatile nowhere = NULL;
	*nowhere = 1;
}

/* disturb does behind the callers' backs what the test asked for. */
static void disturb(void)
{
	uint64_t one = 1;
	if (atomic_load(&control->close_sessions) && atomic_compare_exchange_strong(&control->close_sessions, &one, 0)) {
		pthread_rwlock_wrlock(&lock);
		pthread_mutex_lock(&table);
		while (opened > 0) {
			word slot = sessions[0].slot;
			close_all(slot);
			forget_slot(slot);
		}
		pthread_mutex_unlock(&table);
		pthread_rwlock_unlock(&lock);
	}
	one = 1;
	if (atomic_load(&control->log_out) && atomic_compare_exchange_strong(&control->log_out, &one, 0)) {
		pthread_rwlock_wrlock(&lock);
		pthread_mutex_lock(&table);
		for (word i = 0; i < opened; i++)
			log_out(sessions[i].handle); /* again and again for a slot does no harm */
		pthread_mutex_unlock(&table);
		pthread_rwlock_unlock(&lock);
	}
}

/* begin is called before the module behind. It returns the code that the call
 * fails with, OK if it does not. */
static word begin(int f, word session)
{
	atomic_fetch_add(&control->of[f].calls, 1);
	atomic_fetch_add(&inside, 1);
	if (atomic_load(&alone))
		atomic_fetch_add(&control->intrusions, 1);
	if (session)
		occupy(session, +1);
	if (take(&control->of[f].crash))
		crash();
	if (take(&control->of[f].hang))
		hang();
	disturb();
	pthread_rwlock_rdlock(&lock);
	return take(&control->of[f].fail) ? atomic_load(&control->of[f].code) : OK;
}

/* end is called after it, and returns what the caller is told. */
static word end(int f, word session, word rv)
{
	pthread_rwlock_unlock(&lock);
	if (session)
		occupy(session, -1);
	if (rv != OK)
		atomic_fetch_add(&control->of[f].failed, 1);
	atomic_fetch_sub(&inside, 1);
	return rv;
}

/* A session that the caller is told is gone had better be: else it would be
 * left open for ever. */
static void bury(word session, word code)
{
	if (session == 0 || code != SESSION_HANDLE_INVALID && code != SESSION_CLOSED)
		return;
	close_session(session);
	pthread_mutex_lock(&table);
	forget(session);
	pthread_mutex_unlock(&table);
}

#define PASS(name, n, session)                  \
	static word faulty_##name(P##n)             \
	{                                           \
		word rv = begin(i_##name, session);     \
		if (rv == OK)                           \
			rv = real(n, i_##name)(A##n);       \
		else                                    \
			bury(session, rv);                  \
		return end(i_##name, session, rv);      \
	}
#define OWN(name, n, session)
#define DEFINE(name, n, session, kind) kind(name, n, session)
FUNCTIONS(DEFINE)

/* lifecycle calls f alone. That others are inside is a mistake of the caller,
 * which is counted. */
static word lifecycle(int f, word argument)
{
	atomic_fetch_add(&control->of[f].calls, 1);
	long others = atomic_load(&inside);
	if (others > 0)
		atomic_fetch_add(&control->intrusions, (uint64_t)others);
	atomic_store(&alone, 1);
	if (take(&control->of[f].crash))
		crash();
	if (take(&control->of[f].hang))
		hang();
	pthread_rwlock_wrlock(&lock);
	word rv = take(&control->of[f].fail) ? atomic_load(&control->of[f].code) : real(1, f)(argument);
	if (rv == OK) {
		pthread_mutex_lock(&table);
		opened = 0;
		publish();
		pthread_mutex_unlock(&table);
	} else {
		atomic_fetch_add(&control->of[f].failed, 1);
	}
	pthread_rwlock_unlock(&lock);
	atomic_store(&alone, 0);
	return rv;
}

static word faulty_C_Initialize(word a) { return lifecycle(i_C_Initialize, a); }
static word faulty_C_Finalize(word a) { return lifecycle(i_C_Finalize, a); }

/* CK_TOKEN_INFO has its flags after four texts of 32, 32, 16 and 16 bytes. */
static word faulty_C_GetTokenInfo(word a, word b)
{
	word rv = begin(i_C_GetTokenInfo, 0);
	if (rv == OK)
		rv = real(2, i_C_GetTokenInfo)(a, b);
	if (rv == OK) {
		word *flags = (word *)(b + 96);
		*flags = (*flags & ~atomic_load(&control->flags_clear)) | atomic_load(&control->flags_set);
	}
	return end(i_C_GetTokenInfo, 0, rv);
}

static word faulty_C_OpenSession(word a, word b, word c, word d, word e)
{
	word rv = begin(i_C_OpenSession, 0);
	if (rv == OK) {
		pthread_mutex_lock(&table);
		uint64_t limit = atomic_load(&control->session_limit);
		if (opened == MOST || limit != 0 && opened >= limit)
			rv = SESSION_COUNT;
		if (rv == OK)
			rv = real(5, i_C_OpenSession)(a, b, c, d, e);
		if (rv == OK) {
			sessions[opened].handle = *(word *)e;
			sessions[opened].slot = a;
			sessions[opened].busy = 0;
			opened++;
			publish();
		}
		pthread_mutex_unlock(&table);
	}
	return end(i_C_OpenSession, 0, rv);
}

static word faulty_C_CloseSession(word a)
{
	word rv = begin(i_C_CloseSession, a);
	if (rv == OK) {
		pthread_mutex_lock(&table);
		rv = close_session(a);
		forget(a);
		pthread_mutex_unlock(&table);
	}
	return end(i_C_CloseSession, a, rv); /* the table may not know it any more */
}

static word faulty_C_CloseAllSessions(word a)
{
	word rv = begin(i_C_CloseAllSessions, 0);
	if (rv == OK) {
		pthread_mutex_lock(&table);
		rv = close_all(a);
		forget_slot(a);
		pthread_mutex_unlock(&table);
	}
	return end(i_C_CloseAllSessions, 0, rv);
}

static word faulty_C_Login(word a, word b, word c, word d)
{
	word rv = begin(i_C_Login, a);
	if (rv == OK)
		rv = real(4, i_C_Login)(a, b, c, d);
	else
		bury(a, rv);
	if (rv >= 0xA0 && rv <= 0xA4)
		atomic_fetch_add(&control->refused, 1);
	return end(i_C_Login, a, rv);
}

/* C_Sign that only asks how long a signature would be does not count and meets
 * no faults. One that fails has ended the operation, unless its buffer was too
 * small: so PKCS#11 says. */
static word faulty_C_Sign(word a, word b, word c, word d, word e)
{
	if (d == 0) {
		atomic_fetch_add(&inside, 1);
		occupy(a, +1);
		pthread_rwlock_rdlock(&lock);
		word rv = real(5, i_C_Sign)(a, b, c, d, e);
		pthread_rwlock_unlock(&lock);
		occupy(a, -1);
		atomic_fetch_sub(&inside, 1);
		return rv;
	}
	word injected = begin(i_C_Sign, a);
	if (injected == BUFFER_TOO_SMALL)
		return end(i_C_Sign, a, injected);
	word rv = real(5, i_C_Sign)(a, b, c, d, e);
	if (injected != OK) {
		if (rv == OK)
			memset((void *)d, 0xFF, *(word *)e); /* nobody shall send this */
		bury(a, injected);
		rv = injected;
	} else if (rv == OK && take(&control->twist)) {
		((unsigned char *)d)[*(word *)e / 2] ^= 1;
	}
	return end(i_C_Sign, a, rv);
}

#define EXPORT __attribute__((visibility("default")))

EXPORT word C_GetFunctionList(word a);
static word faulty_C_GetFunctionList(word a) { return C_GetFunctionList(a); }

#define MEMBER(name, n, session, kind) (void *)faulty_##name,
static struct list faulty = {2, 40, {FUNCTIONS(MEMBER)}};

static word fault(const char *what, const char *name)
{
	fprintf(stderr, "faulty module: %s: %s\n", what, name ? name : "(not set)");
	return GENERAL_ERROR;
}

/* C_GetFunctionList is where a caller starts. The environment is read at each
 * call, so that tests of one process can follow each other. */
EXPORT word C_GetFunctionList(word a)
{
	const char *path = getenv("FAULTY_MODULE_CONTROL");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	if (fd < 0)
		return fault("FAULTY_MODULE_CONTROL cannot be opened", path);
	void *shared = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (shared == MAP_FAILED)
		return fault("FAULTY_MODULE_CONTROL cannot be mapped", path);

	path = getenv("FAULTY_MODULE_REAL");
	void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
	word (*get)(word) = library ? (word(*)(word))dlsym(library, "C_GetFunctionList") : NULL;
	struct list *list = NULL;
	if (get == NULL || get((word)&list) != OK)
		return fault("FAULTY_MODULE_REAL is no PKCS#11 module", path);

	/* What was mapped before stays: a call may still be in it. */
	atomic_store(&control, shared);
	atomic_store(&behind, list);
	*(struct list **)a = &faulty;
	return OK;
}
