// libnvidia-ml.so.1 whose GPUs are lines of a text file, read again at each call.
//
// A program that uses NVIDIA's own bindings runs on it unchanged, while a test changes the GPUs under it. A function
// that is missing here is reported by the bindings as one that an old driver lacks. The file is named by
// FAKE_NVML_STATE; lab/fake_driver/__init__.py writes it and says what its lines are.
//
// A process that attached a GPU holds a shared lock on FAKE_NVML_STATE.gpu<N>: a reset needs it exclusively. Plain
// initialisation attaches every GPU; with NVML_INIT_FLAG_NO_ATTACH the first handle does, and a look-up by UUID attaches
// the GPUs through which it searches.
//
// Source: names, numbers and layouts as in NVIDIA's nvml.h and in nvidia-ml-py 13.615 (pynvml.py); what attaches, from
// the notes in nvml.h at nvmlDeviceGetHandleByIndex_v2, ...ByUUID and ...ByPciBusId_v2.
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, BAD_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, SMALL = 7, NO_DRIVER = 9 };
enum { TIMEOUT = 10, LOST = 15, MISMATCH = 18, IN_USE = 19, NO_ROOM = 23, BAD_VERSION = 25 };
enum { NO_ATTACH = 2 };
enum { MOST_SETS = 64, MOST_GPUS = 16, MOST_RULES = 64, MOST_PROCESSES = 256, MOST_EVENTS = 256, MOST_LINKS = 128, TEXT = 96 };

typedef struct {
    char uuid[TEXT], name[TEXT], bus[TEXT];
    unsigned long long memory, used;
    int minor, major_cc, minor_cc, temperature, limit, utilization, power, recovery, rows_failed, mig, reasons, resets;
    long long ecc;
} Gpu;
// Without a compute instance it is bare: no device handle shows it.
typedef struct { char uuid[TEXT]; int gpu, id, start, size, profile, bare; unsigned long long memory; } Mig;
typedef struct { int id, slices, size, megabytes; const char *name; } Profile;
// Those of an A100 with 80 GB, by NVML_GPU_INSTANCE_PROFILE_*.
static const Profile profiles[] = {{19, 1, 1, 9728, "MIG 1g.10gb"}, {14, 2, 2, 19968, "MIG 2g.20gb"},
                                   {9, 3, 4, 40448, "MIG 3g.40gb"}, {5, 4, 4, 40448, "MIG 4g.40gb"},
                                   {0, 7, 8, 81152, "MIG 7g.80gb"}};
enum { PROFILES = sizeof profiles / sizeof *profiles };
// Of a GPU, or of all with -1; with `whole` not of its MIG instances.
typedef struct { char function[TEXT]; int code, gpu, hangs, whole; } Rule;
typedef struct { int gpu, pid, percent; unsigned long long memory; } Process;
typedef struct { int gpu, xid; long sequence; } Event;
typedef struct { int a, b, nvlinks, level; } Link;

static struct {
    int present, mismatch, foreign, old_structs, gpus, migs, rules, processes, events, links;
    Gpu gpu[MOST_GPUS]; Mig mig[64]; Rule rule[MOST_RULES]; Process process[MOST_PROCESSES];
    Event event[MOST_EVENTS]; Link link[MOST_LINKS];
    char version[TEXT];
} now;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long told_events = -1;
static int inits, attached[MOST_GPUS];  // A descriptor plus one.
// Which GPUs are registered, and how often each had been reset by then: a reset ends the registration.
static struct { int used, registered[MOST_GPUS], resets[MOST_GPUS]; } sets[MOST_SETS];

static void restore_spaces(char *text) { for (; *text; text++) if (*text == '+') *text = ' '; }

// Instances that programs made lie beside the state, as they would in the GPU.
static void made_file(char *out, size_t size) { snprintf(out, size, "%s.migs", getenv("FAKE_NVML_STATE")); }

static void load_file(const char *path) {
    FILE *file = fopen(path, "r");
    char line[1024], kind[TEXT];
    if (!file) return;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "%95s", kind) != 1) continue;
        if (!strcmp(kind, "driver")) {
            now.present = 1, now.mismatch = strstr(line, " mismatch") != NULL;
            now.foreign = strstr(line, " foreign-pids") != NULL, now.old_structs = strstr(line, " old-structs") != NULL;
            const char *version = strstr(line, " version=");
            if (!version || sscanf(version, " version=%95s", now.version) != 1) strcpy(now.version, "570.86.15");
        }
        else if (!strcmp(kind, "gpu") && now.gpus < MOST_GPUS) {
            Gpu *g = &now.gpu[now.gpus];
            if (sscanf(line, "gpu %95s %95s %95s %d %llu %llu %d.%d %d %d %d %d %lld %d %d %d %d %d", g->uuid, g->name, g->bus,
                       &g->minor, &g->memory, &g->used, &g->major_cc, &g->minor_cc, &g->temperature, &g->limit,
                       &g->utilization, &g->power, &g->ecc, &g->rows_failed, &g->recovery, &g->mig, &g->reasons,
                       &g->resets) == 18)
                restore_spaces(g->name), now.gpus++;
        } else if (!strcmp(kind, "mig") && now.migs < 64) {
            Mig *m = &now.mig[now.migs];
            if (sscanf(line, "mig %d %95s %llu %d %d %d %d", &m->gpu, m->uuid, &m->memory, &m->id, &m->start, &m->size,
                       &m->profile) == 7)
                m->bare = strstr(line, " bare") != NULL, now.migs++;
        } else if (!strcmp(kind, "fail") && now.rules < MOST_RULES) {
            Rule *r = &now.rule[now.rules];
            r->whole = strstr(line, " whole") != NULL;
            if (sscanf(line, "fail %95s %d %d", r->function, &r->code, &r->gpu) == 3) now.rules++;
        } else if (!strcmp(kind, "hang") && now.rules < MOST_RULES) {
            Rule *r = &now.rule[now.rules];
            r->hangs = 1;
            if (sscanf(line, "hang %95s %d", r->function, &r->gpu) == 2) now.rules++;
        } else if (!strcmp(kind, "process") && now.processes < MOST_PROCESSES) {
            Process *p = &now.process[now.processes];
            if (sscanf(line, "process %d %d %llu %d", &p->gpu, &p->pid, &p->memory, &p->percent) == 4) now.processes++;
        } else if (!strcmp(kind, "xid") && now.events < MOST_EVENTS) {
            Event *e = &now.event[now.events];
            if (sscanf(line, "xid %ld %d %d", &e->sequence, &e->gpu, &e->xid) == 3) now.events++;
        } else if (!strcmp(kind, "link") && now.links < MOST_LINKS) {
            Link *l = &now.link[now.links];
            if (sscanf(line, "link %d %d %d %d", &l->a, &l->b, &l->nvlinks, &l->level) == 4) now.links++;
        }
    }
    fclose(file);
}

static void load(void) {
    char made[1024];
    memset(&now, 0, sizeof now);
    if (!getenv("FAKE_NVML_STATE")) return;
    load_file(getenv("FAKE_NVML_STATE"));
    made_file(made, sizeof made);
    load_file(made);
}

// What the rules say of a call; -1 where it hangs.
static int ruled(const char *function, int gpu, int is_mig) {
    int code = OK;
    for (int i = 0; i < now.rules; i++)
        if ((!strcmp(now.rule[i].function, "*") || !strcmp(now.rule[i].function, function)) &&
            (now.rule[i].gpu < 0 || now.rule[i].gpu == gpu) && !(is_mig && now.rule[i].whole)) {
            if (now.rule[i].hangs) return -1;
            code = now.rule[i].code;
        }
    return code;
}

static void attach(int gpu) {
    char path[1024];
    if (gpu < 0 || gpu >= MOST_GPUS || attached[gpu]) return;
    snprintf(path, sizeof path, "%s.gpu%d", getenv("FAKE_NVML_STATE"), gpu);
    int found = open(path, O_RDONLY | O_CLOEXEC);
    if (found < 0) found = open(path, O_RDONLY | O_CREAT | O_CLOEXEC, 0666);
    if (found < 0) return;
    flock(found, LOCK_SH);
    attached[gpu] = found + 1;
}

// Loads the file and obeys its rules for this call; gpu is -1 where the call is about none. Returns with the lock held
// only when it returns OK.
static int enter(const char *function, int gpu, int is_mig) {
    for (;;) {
        pthread_mutex_lock(&lock);
        load();
        int code = ruled(function, gpu, is_mig), hangs = code < 0;
        if (!now.present) code = NO_DRIVER, hangs = 0;
        else if (now.mismatch) code = MISMATCH, hangs = 0;
        else if (!inits && strcmp(function, "nvmlInitWithFlags")) code = UNINITIALIZED, hangs = 0;
        else if (gpu >= now.gpus) code = LOST, hangs = 0;
        if (code == OK) attach(gpu);
        if (code != OK) pthread_mutex_unlock(&lock);
        if (!hangs) return code;
        usleep(20000);
    }
}

// The result is read before the lock is free: another thread loads the file anew.
#define LEAVE(result) do { int left = (result); pthread_mutex_unlock(&lock); return left; } while (0)
#define ENTER(gpu) do { int refused = enter(__func__, gpu, 0); if (refused != OK) return refused; } while (0)
#define ENTER_ON(device) do { \
        int is_mig = (intptr_t)(device) >> 8 != 0, refused = enter(__func__, index_of(device), is_mig); \
        if (refused != OK) return refused; \
        if (is_mig && mig_of(device) < 0) LEAVE(NOT_FOUND); \
    } while (0)
static int index_of(const void *device) { return (int)((intptr_t)device & 0xff) - 1; }
// The line of a MIG instance by its number, as lines move when others are destroyed; -1 for a whole GPU.
static int mig_of(const void *device) {
    for (int i = 0; (intptr_t)device >> 8 && i < now.migs; i++)
        if (now.mig[i].gpu == index_of(device) && now.mig[i].id == (int)((intptr_t)device >> 8) - 1) return i;
    return -1;
}
static void *handle(int gpu, int mig) {
    return (void *)(intptr_t)((gpu + 1) | (mig < 0 ? 0 : (now.mig[mig].id + 1) << 8));
}
static int copy(char *out, unsigned size, const char *text) {
    if (strlen(text) >= size) return SMALL;
    strcpy(out, text);
    return OK;
}

int nvmlInitWithFlags(unsigned flags) {
    ENTER(-1);
    for (int i = 0; !(flags & NO_ATTACH) && i < now.gpus; i++) attach(i);
    inits++;
    LEAVE(OK);
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    if (!inits) LEAVE(UNINITIALIZED);
    if (!--inits) {
        memset(sets, 0, sizeof sets);
        for (int i = 0; i < MOST_GPUS; i++) {
            if (attached[i]) close(attached[i] - 1);
            attached[i] = 0;
        }
    }
    LEAVE(OK);
}
const char *nvmlErrorString(int code) {
    switch (code) {
        case OK: return "Success";
        case UNINITIALIZED: return "Uninitialized";
        case 6: return "Not Found";
        case 13: return "Function Not Found";
        case 16: return "GPU requires reset";
        case IN_USE: return "In use by another client";
        case BAD_VERSION: return "Argument version mismatch";
        case NOT_SUPPORTED: return "Not Supported";
        case 4: return "Insufficient Permissions";
        case NO_DRIVER: return "Driver Not Loaded";
        case TIMEOUT: return "Timeout";
        case 23: return "Insufficient Resources";
        case 15: return "GPU is lost";
        case 18: return "Driver/library version mismatch";
        default: return "Unknown Error";
    }
}
int nvmlSystemGetDriverVersion(char *out, unsigned size) { ENTER(-1); LEAVE(copy(out, size, now.version)); }
int nvmlSystemGetCudaDriverVersion(int *version) { ENTER(-1); *version = 12080; LEAVE(OK); }
int nvmlDeviceGetCount_v2(unsigned *count) { ENTER(-1); *count = now.gpus; LEAVE(OK); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    ENTER((int)index);
    *device = handle(index, -1);
    LEAVE(OK);
}
static int find(const char *function, int gpu, void **device) {
    int refused = enter(function, gpu, 0);
    if (refused != OK) return refused;
    *device = handle(gpu, -1);
    LEAVE(OK);
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    ENTER(-1);
    for (int i = 0; i < now.gpus; i++) {
        attach(i);
        if (strcmp(now.gpu[i].uuid, uuid)) continue;
        pthread_mutex_unlock(&lock);
        return find(__func__, i, device);
    }
    LEAVE(NOT_FOUND);
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
    ENTER(-1);
    for (int i = 0; i < now.gpus; i++) {
        if (strcasecmp(now.gpu[i].bus, bus)) continue;
        pthread_mutex_unlock(&lock);
        return find(__func__, i, device);
    }
    LEAVE(NOT_FOUND);
}
#define GPU(device) now.gpu[index_of(device)]
int nvmlDeviceGetUUID(void *device, char *out, unsigned size) {
    ENTER_ON(device);
    LEAVE(copy(out, size, mig_of(device) >= 0 ? now.mig[mig_of(device)].uuid : GPU(device).uuid));
}
int nvmlDeviceGetName(void *device, char *out, unsigned size) {
    ENTER_ON(device);
    char text[2 * TEXT];
    const char *instance = "";
    for (int i = 0; mig_of(device) >= 0 && i < PROFILES; i++)
        if (profiles[i].id == now.mig[mig_of(device)].profile) instance = profiles[i].name;
    snprintf(text, sizeof text, "%s%s%s", GPU(device).name, *instance ? " " : "", instance);
    LEAVE(copy(out, size, text));
}
typedef struct { unsigned long long total, free, used; } Memory;
int nvmlDeviceGetMemoryInfo(void *device, Memory *out) {
    ENTER_ON(device);
    out->total = mig_of(device) >= 0 ? now.mig[mig_of(device)].memory : GPU(device).memory;
    out->used = mig_of(device) >= 0 ? 0 : GPU(device).used;
    out->free = out->total - out->used;
    LEAVE(OK);
}
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
int nvmlDeviceGetMemoryInfo_v2(void *device, Memory2 *out) {
    ENTER_ON(device);
    if (now.old_structs || out->version != 0x02000028) LEAVE(BAD_VERSION);
    out->total = mig_of(device) >= 0 ? now.mig[mig_of(device)].memory : GPU(device).memory;
    out->used = mig_of(device) >= 0 ? 0 : GPU(device).used;
    out->free = out->total - out->used, out->reserved = 0;
    LEAVE(OK);
}
int nvmlDeviceGetMinorNumber(void *device, unsigned *out) { ENTER_ON(device); *out = GPU(device).minor; LEAVE(OK); }
typedef struct { char old[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
int nvmlDeviceGetPciInfo_v3(void *device, Pci *out) {
    ENTER_ON(device);
    memset(out, 0, sizeof *out);
    snprintf(out->bus_id, sizeof out->bus_id, "%.31s", GPU(device).bus);
    sscanf(GPU(device).bus, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    LEAVE(OK);
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    ENTER_ON(device);
    *major = GPU(device).major_cc, *minor = GPU(device).minor_cc;
    LEAVE(OK);
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    ENTER_ON(device);
    if (GPU(device).mig < 0) LEAVE(NOT_SUPPORTED);
    *current = *pending = GPU(device).mig;
    LEAVE(OK);
}
int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) {
    ENTER_ON(device);
    *count = GPU(device).mig > 0 ? 7 : 0;
    LEAVE(OK);
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned wanted, void **out) {
    ENTER_ON(device);
    for (int i = 0, seen = 0; i < now.migs; i++)
        if (now.mig[i].gpu == index_of(device) && !now.mig[i].bare && seen++ == (int)wanted) {
            *out = handle(index_of(device), i);
            LEAVE(OK);
        }
    LEAVE(NOT_FOUND);
}
int nvmlDeviceGetGpuInstanceId(void *mig, unsigned *id) { ENTER_ON(mig); *id = now.mig[mig_of(mig)].id; LEAVE(OK); }
int nvmlDeviceGetComputeInstanceId(void *mig, unsigned *id) { ENTER_ON(mig); *id = 0; LEAVE(OK); }
int nvmlDeviceGetGpuInstanceById(void *device, unsigned id, void **out) {
    ENTER_ON(device);
    for (int i = 0; i < now.migs; i++)
        if (now.mig[i].gpu == index_of(device) && now.mig[i].id == (int)id) {
            *out = handle(index_of(device), i);
            LEAVE(OK);
        }
    LEAVE(NOT_FOUND);
}
int nvmlDeviceGetGpuInstances(void *device, unsigned profile, void **out, unsigned *count) {
    ENTER_ON(device);
    unsigned found = 0;
    for (int i = 0; i < now.migs; i++)
        if (now.mig[i].gpu == index_of(device) && now.mig[i].profile == (int)profile) out[found++] = handle(index_of(device), i);
    *count = found;
    LEAVE(OK);
}
int nvmlGpuInstanceGetComputeInstances(void *instance, unsigned profile, void **out, unsigned *count) {
    ENTER_ON(instance);
    (void)profile;
    *count = !now.mig[mig_of(instance)].bare;
    if (*count) out[0] = instance;
    LEAVE(OK);
}
typedef struct { void *device; unsigned id, profile, start, size; } InstanceInfo;
int nvmlGpuInstanceGetInfo(void *instance, InstanceInfo *out) {
    ENTER_ON(instance);
    Mig *m = &now.mig[mig_of(instance)];
    *out = (InstanceInfo){handle(m->gpu, -1), m->id, m->profile, m->start, m->size};
    LEAVE(OK);
}
typedef struct {
    unsigned version, id, p2p, slices, instances, processors, copy, decoders, encoders, jpeg, ofa;
    unsigned long long megabytes;
    char name[96];
} ProfileInfo;
int nvmlDeviceGetGpuInstanceProfileInfoV(void *device, unsigned profile, ProfileInfo *out) {
    ENTER_ON(device);
    if (now.old_structs || out->version != 0x02000098) LEAVE(BAD_VERSION);
    if (profile >= PROFILES || GPU(device).mig < 0) LEAVE(NOT_SUPPORTED);
    out->id = profiles[profile].id, out->slices = profiles[profile].slices, out->megabytes = profiles[profile].megabytes;
    out->instances = 8 / profiles[profile].size;
    strcpy(out->name, profiles[profile].name);
    LEAVE(OK);
}
typedef struct { unsigned start, size; } Placement;
// Every profile begins at multiples of its size, below the seven compute slices; 4g begins at 0 only.
int nvmlDeviceGetGpuInstancePossiblePlacements_v2(void *device, unsigned id, Placement *out, unsigned *count) {
    ENTER_ON(device);
    unsigned found = 0;
    for (int i = 0; i < PROFILES; i++)
        for (int start = 0; profiles[i].id == (int)id && start < 7; start += profiles[i].size) {
            if (start + profiles[i].slices > 7 || (profiles[i].slices == 4 && start)) break;
            if (out && found < *count) out[found] = (Placement){start, profiles[i].size};
            found++;
        }
    if (!found) LEAVE(BAD_ARGUMENT);
    *count = found;
    LEAVE(OK);
}
int nvmlDeviceCreateGpuInstanceWithPlacement(void *device, unsigned id, const Placement *wanted, void **out) {
    ENTER_ON(device);
    const Profile *profile = NULL;
    int next = 1;
    for (int i = 0; i < PROFILES; i++)
        if (profiles[i].id == (int)id) profile = &profiles[i];
    if (!profile || profile->size != (int)wanted->size || GPU(device).mig != 1) LEAVE(BAD_ARGUMENT);
    for (int i = 0; i < now.migs; i++) {
        Mig *m = &now.mig[i];
        if (m->id >= next) next = m->id + 1;
        if (m->gpu == index_of(device) && (int)wanted->start < m->start + m->size && m->start < (int)(wanted->start + wanted->size))
            LEAVE(NO_ROOM);
    }
    char made[1024];
    made_file(made, sizeof made);
    FILE *file = fopen(made, "a");
    if (!file) LEAVE(4);
    fprintf(file, "mig %d MIG-made-%d-%d %llu %d %u %u %u bare\n", index_of(device), index_of(device), next,
            (unsigned long long)profile->megabytes << 20, next, wanted->start, wanted->size, id);
    fclose(file);
    load();
    for (int i = 0; i < now.migs; i++)
        if (now.mig[i].id == next && now.mig[i].gpu == index_of(device)) *out = handle(index_of(device), i);
    LEAVE(OK);
}
typedef struct {
    unsigned version, id, slices, instances, processors, copy, decoders, encoders, jpeg, ofa;
    char name[96];
} ComputeProfileInfo;
int nvmlGpuInstanceGetComputeInstanceProfileInfoV(void *instance, unsigned profile, unsigned engines, ComputeProfileInfo *out) {
    (void)engines;
    ENTER_ON(instance);
    if (now.old_structs || out->version != 0x02000088) LEAVE(BAD_VERSION);
    out->id = profile, out->slices = profile + 1;
    LEAVE(OK);
}
// Writes the line of a made instance anew, or deletes it.
static void rewrite(int mig, int bare, int gone) {
    Mig *m = &now.mig[mig];
    char made[1024], part[1040], line[1024], uuid[TEXT];
    made_file(made, sizeof made);
    snprintf(part, sizeof part, "%s.part", made);
    FILE *from = fopen(made, "r"), *to = fopen(part, "w");
    while (from && to && fgets(line, sizeof line, from)) {
        if (sscanf(line, "mig %*d %95s", uuid) != 1 || strcmp(uuid, m->uuid)) fputs(line, to);
        else if (!gone)
            fprintf(to, "mig %d %s %llu %d %d %d %d%s\n", m->gpu, m->uuid, m->memory, m->id, m->start, m->size, m->profile,
                    bare ? " bare" : "");
    }
    if (from) fclose(from);
    if (to) fclose(to), rename(part, made);
    load();
}
int nvmlGpuInstanceCreateComputeInstance(void *instance, unsigned profile, void **out) {
    (void)profile;
    ENTER_ON(instance);
    rewrite(mig_of(instance), 0, 0);
    *out = instance;
    LEAVE(OK);
}
int nvmlGpuInstanceGetComputeInstanceById(void *instance, unsigned id, void **out) {
    (void)id;
    ENTER_ON(instance);
    if (now.mig[mig_of(instance)].bare) LEAVE(NOT_FOUND);
    *out = instance;
    LEAVE(OK);
}
int nvmlComputeInstanceDestroy(void *compute) {
    ENTER_ON(compute);
    rewrite(mig_of(compute), 1, 0);
    LEAVE(OK);
}
int nvmlGpuInstanceDestroy(void *instance) {
    ENTER_ON(instance);
    if (!now.mig[mig_of(instance)].bare) LEAVE(IN_USE);
    rewrite(mig_of(instance), 1, 1);
    LEAVE(OK);
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *out) {
    (void)sensor;
    ENTER_ON(device);
    *out = GPU(device).temperature;
    LEAVE(OK);
}
int nvmlDeviceGetTemperatureThreshold(void *device, int kind, unsigned *out) {
    ENTER_ON(device);
    *out = GPU(device).limit - (kind ? 5 : 0);
    LEAVE(OK);
}
int nvmlDeviceGetUtilizationRates(void *device, unsigned out[2]) {
    ENTER_ON(device);
    if (GPU(device).mig > 0) LEAVE(NOT_SUPPORTED);
    out[0] = GPU(device).utilization, out[1] = GPU(device).utilization < 0 ? -1 : GPU(device).utilization / 2;
    LEAVE(OK);
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *out) { ENTER_ON(device); *out = GPU(device).power; LEAVE(OK); }
int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *out) {
    (void)type, (void)counter;
    ENTER_ON(device);
    if (GPU(device).ecc < 0) LEAVE(NOT_SUPPORTED);
    *out = GPU(device).ecc;
    LEAVE(OK);
}
int nvmlDeviceGetRemappedRows(void *device, unsigned *corrected, unsigned *not, unsigned *pending, unsigned *failed) {
    ENTER_ON(device);
    *corrected = *not = *pending = 0, *failed = GPU(device).rows_failed;
    LEAVE(OK);
}
// The name of the next one before driver 535.
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *out) {
    ENTER_ON(device);
    *out = GPU(device).reasons;
    LEAVE(OK);
}
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *out) {
    ENTER_ON(device);
    *out = GPU(device).reasons;
    LEAVE(OK);
}
typedef struct {
    unsigned field, scope; long long timestamp, latency; int type, result;
    union { double number; unsigned whole; unsigned long long large; } value;
} Field;
int nvmlDeviceGetFieldValues(void *device, int count, Field *fields) {
    ENTER_ON(device);
    for (int i = 0; i < count; i++) {
        int known = fields[i].field == 230 && GPU(device).recovery >= 0;
        fields[i].result = known ? OK : NOT_SUPPORTED, fields[i].type = 1, fields[i].value.large = 0;
        if (known) fields[i].value.whole = GPU(device).recovery;
    }
    LEAVE(OK);
}
int nvmlDeviceGetTopologyCommonAncestor(void *device, void *other, int *level) {
    ENTER_ON(device);
    int a = index_of(device), b = index_of(other);
    *level = 50;
    for (int i = 0; i < now.links; i++)
        if ((now.link[i].a == a && now.link[i].b == b) || (now.link[i].a == b && now.link[i].b == a)) *level = now.link[i].level;
    LEAVE(OK);
}
// The NVLinks of a GPU are numbered through its peers in the order of the file.
static int peer_of(int gpu, int wanted) {
    for (int i = 0; i < now.links; i++) {
        int peer = now.link[i].a == gpu ? now.link[i].b : now.link[i].b == gpu ? now.link[i].a : -1;
        if (peer < 0) continue;
        if (wanted < now.link[i].nvlinks) return peer;
        wanted -= now.link[i].nvlinks;
    }
    return -1;
}
int nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *active) {
    ENTER_ON(device);
    if (link >= 18) LEAVE(BAD_ARGUMENT);
    *active = peer_of(index_of(device), link) >= 0;
    LEAVE(OK);
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, Pci *out) {
    ENTER_ON(device);
    int peer = peer_of(index_of(device), link);
    if (peer < 0) LEAVE(NOT_FOUND);
    memset(out, 0, sizeof *out);
    snprintf(out->bus_id, sizeof out->bus_id, "%.31s", now.gpu[peer].bus);
    LEAVE(OK);
}
typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Running;
static int running(void *device, unsigned *count, Running *out) {
    unsigned found = 0, room = *count;
    for (int i = 0; i < now.processes; i++) {
        if (now.process[i].gpu != index_of(device) || now.foreign) continue;
        if (found < room && out) out[found] = (Running){now.process[i].pid, now.process[i].memory, ~0u, ~0u};
        found++;
    }
    *count = found;
    LEAVE(found > room ? SMALL : OK);
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Running *out) {
    ENTER_ON(device);
    return running(device, count, out);
}
// Of drivers before 510; the layout is the same.
int nvmlDeviceGetComputeRunningProcesses_v2(void *device, unsigned *count, Running *out) {
    ENTER_ON(device);
    return running(device, count, out);
}
// No process here runs by MPS.
int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *device, unsigned *count, Running *out) {
    (void)out;
    ENTER_ON(device);
    *count = 0;
    LEAVE(OK);
}
typedef struct { unsigned pid; unsigned long long timestamp; unsigned sm, memory, encoder, decoder; } Sample;
int nvmlDeviceGetProcessUtilization(void *device, Sample *out, unsigned *count, unsigned long long since) {
    (void)since;
    ENTER_ON(device);
    unsigned found = 0, room = out ? *count : 0;
    for (int i = 0; i < now.processes; i++) {
        if (now.process[i].gpu != index_of(device) || now.foreign) continue;
        if (found < room) out[found] = (Sample){now.process[i].pid, (unsigned long long)time(NULL) * 1000000, now.process[i].percent, 0, 0, 0};
        found++;
    }
    *count = found;
    LEAVE(!found ? NOT_FOUND : found > room ? SMALL : OK);
}
int nvmlEventSetCreate(void **set) {
    ENTER(-1);
    if (told_events < 0) {  // What happened before is not told.
        told_events = 0;
        for (int i = 0; i < now.events; i++)
            if (now.event[i].sequence > told_events) told_events = now.event[i].sequence;
    }
    for (int i = 0; i < MOST_SETS; i++)
        if (!sets[i].used) {
            memset(&sets[i], 0, sizeof sets[i]);
            sets[i].used = 1;
            *set = (void *)(intptr_t)(i + 1);
            LEAVE(OK);
        }
    LEAVE(20);
}
int nvmlEventSetFree(void *set) {
    ENTER(-1);
    sets[(intptr_t)set - 1].used = 0;
    LEAVE(OK);
}
// The compute mode of each GPU lies beside the state too, a byte a GPU.
static void modes_file(char *out, size_t size) { snprintf(out, size, "%s.modes", getenv("FAKE_NVML_STATE")); }
int nvmlDeviceGetComputeMode(void *device, int *out) {
    ENTER_ON(device);
    char path[1024];
    modes_file(path, sizeof path);
    FILE *file = fopen(path, "r");
    *out = file && !fseek(file, index_of(device), SEEK_SET) ? fgetc(file) : 0;
    if (*out < 0) *out = 0;
    if (file) fclose(file);
    LEAVE(OK);
}
int nvmlDeviceSetComputeMode(void *device, int mode) {
    ENTER_ON(device);
    char path[1024];
    modes_file(path, sizeof path);
    FILE *file = fopen(path, "r+");
    if (!file) file = fopen(path, "w+");
    if (!file) LEAVE(NO_PERMISSION);
    fseek(file, index_of(device), SEEK_SET);
    fputc(mode, file);
    fclose(file);
    LEAVE(OK);
}
int nvmlDeviceGetSupportedEventTypes(void *device, unsigned long long *out) { ENTER_ON(device); *out = 0xf; LEAVE(OK); }
int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set) {
    ENTER_ON(device);
    int number = (intptr_t)set - 1, gpu = index_of(device);
    if (!types || number < 0 || number >= MOST_SETS || !sets[number].used) LEAVE(BAD_ARGUMENT);
    sets[number].registered[gpu] = 1, sets[number].resets[gpu] = now.gpu[gpu].resets;
    LEAVE(OK);
}
typedef struct { void *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } Told;
int nvmlEventSetWait_v2(void *set, Told *out, unsigned timeout_ms) {
    int number = (intptr_t)set - 1;
    for (unsigned waited = 0;; waited += 20) {
        ENTER(-1);
        if (number < 0 || number >= MOST_SETS || !sets[number].used) LEAVE(BAD_ARGUMENT);
        for (int i = 0; i < now.gpus; i++)
            if (sets[number].registered[i] && ruled(__func__, i, 0) == LOST) LEAVE(LOST);
        for (int i = 0; i < now.events; i++) {
            int gpu = now.event[i].gpu;
            if (now.event[i].sequence <= told_events) continue;
            told_events = now.event[i].sequence;
            if (!sets[number].registered[gpu] || sets[number].resets[gpu] != now.gpu[gpu].resets) continue;
            *out = (Told){handle(gpu, -1), 8, now.event[i].xid, ~0u, ~0u};
            LEAVE(OK);
        }
        pthread_mutex_unlock(&lock);
        if (waited >= timeout_ms) return TIMEOUT;
        usleep(20000);
    }
}
