/* Stands in for libnvidia-ml.so.1, and for the kernel's word on its clock (adjtimex).

   NVML_INIT, NVML_HANDLE, NVML_MEMORY: error codes of starting up, of a GPU, of its memory (default 0: fine).
   NVML_DRIVER: "570.86.15". NVML_CUDA: 12080 is CUDA 12.8. CLOCK_STATE: what adjtimex returns (5: not synchronised).
   NVML_GPUS: a GPU a line "major minor MiB_total MiB_used pid_or_0 memory_errors throttle_reasons compute_mode mig". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int major, minor; unsigned long long total, used; unsigned pid, errors, throttled, mode, mig; } Gpu;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long memory; unsigned instance, compute_instance; } Process;
static Gpu gpus[16];
static unsigned count;

static int number(const char *name) { const char *text = getenv(name); return text ? atoi(text) : 0; }

int nvmlInitWithFlags(unsigned flags) {
    const char *text = getenv("NVML_GPUS");
    for (count = 0; text && *text && count < 16; count++) {
        Gpu *g = &gpus[count];
        if (sscanf(text, "%d %d %llu %llu %u %u %u %u %u", &g->major, &g->minor, &g->total, &g->used, &g->pid,
                   &g->errors, &g->throttled, &g->mode, &g->mig) != 9) break;
        text = strchr(text, '\n');
        if (!text) { count++; break; }
        text++;
    }
    return number("NVML_INIT");
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 999 ? "Unknown Error" : "Some Error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "%s", getenv("NVML_DRIVER")); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = number("NVML_CUDA"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *found) { *found = count; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu **gpu) { *gpu = &gpus[index]; return number("NVML_HANDLE"); }
int nvmlDeviceGetName(Gpu *gpu, char *text, unsigned size) { snprintf(text, size, "Fake %d.%d", gpu->major, gpu->minor); return 0; }
int nvmlDeviceGetUUID(Gpu *gpu, char *text, unsigned size) { snprintf(text, size, "GPU-%d", (int)(gpu - gpus)); return 0; }
int nvmlDeviceGetCudaComputeCapability(Gpu *gpu, int *major, int *minor) { *major = gpu->major; *minor = gpu->minor; return 0; }
int nvmlDeviceGetMemoryInfo(Gpu *gpu, Memory *memory) {
    memory->total = gpu->total << 20; memory->used = gpu->used << 20; memory->free = memory->total - memory->used;
    return number("NVML_MEMORY");
}
int nvmlDeviceGetComputeRunningProcesses_v3(Gpu *gpu, unsigned *size, Process *processes) {
    if (!gpu->pid) { *size = 0; return 0; }
    if (!processes || !*size) { *size = 1; return 7; } /* NVML_ERROR_INSUFFICIENT_SIZE */
    *size = 1;
    processes[0] = (Process){gpu->pid, gpu->used << 20, 0, 0};
    return 0;
}
int nvmlDeviceGetTotalEccErrors(Gpu *gpu, int kind, int counter, unsigned long long *errors) { *errors = gpu->errors; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(Gpu *gpu, unsigned long long *reasons) { *reasons = gpu->throttled; return 0; }
int nvmlDeviceGetComputeMode(Gpu *gpu, unsigned *mode) { *mode = gpu->mode; return 0; }
int nvmlDeviceGetMigMode(Gpu *gpu, unsigned *now, unsigned *pending) { *now = *pending = gpu->mig; return 0; }
int nvmlDeviceGetMaxMigDeviceCount(Gpu *gpu, unsigned *most) { *most = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(Gpu *gpu, unsigned index, Gpu **instance) { return 6; } /* not found */
int adjtimex(void *timex) { memset(timex, 0, 64); return number("CLOCK_STATE"); }
