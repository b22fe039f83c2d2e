// A CUDA runtime that keeps a journal of what it is asked for and does nothing else, for csrc/graph and csrc/core.
// What it is told to fail once raises there. Memory is the host's. As the real one it makes contexts where they are
// needed, and refuses what may not be done while another thread captures.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

struct CUpool;

#define CUDART_VERSION 13000
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};

namespace null_cuda {

struct State {
  bool writes = false;  // whether the journal is kept
  std::vector<std::string> journal;
  std::string failing;              // the call that fails, once
  std::uintptr_t handles = 0x1000;  // of streams, events and graphs
  std::vector<struct ::CUpool*> pools;
  int current = 0;
  std::array<bool, 4> contexts{};  // whether a device has one
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool captured_elsewhere = false;  // by another thread, in the mode "global"
};

inline State& state() {
  static State found;
  return found;
}

inline std::string text(const void* handle) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%zx", static_cast<std::size_t>(reinterpret_cast<std::uintptr_t>(handle)));
  return buffer;
}

}  // namespace null_cuda

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorECCUncorrectable = 214,
  cudaErrorInvalidPc = 718,
  cudaErrorNvlinkUncorrectable = 220,
  cudaErrorContained = 226,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchTimeout = 702,
  cudaErrorAssert = 710,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorLaunchFailure = 719,
  cudaErrorTensorMemoryLeak = 721,
  cudaErrorMpsClientTerminated = 810,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorExternalDevice = 911
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaMemcpyKind { cudaMemcpyDefault };
enum { cudaEnableDefault };
enum { cudaEventDefault, cudaEventDisableTiming, cudaStreamNonBlocking, cudaHostAllocPortable };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor };
using cudaStream_t = struct CUstream*;
using cudaEvent_t = struct CUevent*;
using cudaGraph_t = struct CUgraph*;
using cudaGraphExec_t = struct CUexec*;
using cudaGraphNode_t = struct CUnode*;
using cudaMemPool_t = CUpool*;
enum cudaMemAllocationType { cudaMemAllocationTypePinned };
enum cudaMemLocationType { cudaMemLocationTypeDevice };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold };
struct cudaMemPoolProps {
  cudaMemAllocationType allocType;
  struct {
    cudaMemLocationType type;
    int id;
  } location;
};
struct cudaDeviceProp {
  char name[64];
};

namespace null_cuda {

template <typename T>
T new_handle() {
  return reinterpret_cast<T>(state().handles += 16);
}

inline cudaError_t done(const char* call, const std::string& rest) {
  State& now = state();
  now.journal.push_back(call + rest);
  if (now.failing != call) return cudaSuccess;
  now.failing.clear();
  return cudaErrorIllegalAddress;
}

// Of a call that may not be done while another thread captures.
inline cudaError_t unsafe() {
  const State& now = state();
  const bool refused = now.captured_elsewhere && now.mode == cudaStreamCaptureModeGlobal;
  return refused ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

inline int primary_state(int device, unsigned*, int* active) {
  return *active = state().contexts.at(device), 0;
}

}  // namespace null_cuda

// A macro, so that a journal that is not kept costs a comparison.
#define NULL_CUDA_DONE(call, rest) (null_cuda::state().writes ? null_cuda::done(call, rest) : cudaSuccess)

inline cudaError_t cudaGetDevice(int* device) { return *device = null_cuda::state().current, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  null_cuda::state().contexts.at(device) = true;
  return null_cuda::state().current = device, cudaSuccess;
}
inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned, unsigned long long) {
  if (std::strcmp(name, "cuDevicePrimaryCtxGetState") == 0) *found = reinterpret_cast<void*>(&null_cuda::primary_state);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "it was told to fail"; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 2, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 9, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) {
  return std::strcpy(found->name, "null"), cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) { return *free = *total = 1, cudaSuccess; }
// As in libcudart 13.0, where it begins as cudaMalloc does.
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  null_cuda::State& now = null_cuda::state();
  now.contexts.at(now.current) = true;
  return std::swap(now.mode, *mode), cudaSuccess;
}

template <typename T>
cudaError_t cudaMalloc(T** memory, std::size_t bytes) {
  null_cuda::state().contexts.at(null_cuda::state().current) = true;
  *memory = static_cast<T*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  return null_cuda::unsafe();
}
template <typename T>
cudaError_t cudaHostAlloc(T** memory, std::size_t bytes, unsigned) {
  return cudaMalloc(memory, bytes);
}
inline cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaFreeHost(void* memory) { return std::free(memory), cudaSuccess; }

// A pool as CUDA's documentation has it: what is freed is used again, what is not there is taken from the device, and
// when the host waits, what is not used goes back to it but for as much as the release threshold.
struct CUpool {
  unsigned long long threshold = 0;
  std::vector<std::size_t> kept;  // pieces that are not used
  std::map<void*, std::size_t> used;

  void* take(std::size_t bytes) {
    auto piece = std::find_if(kept.begin(), kept.end(), [&](std::size_t size) { return size >= bytes; });
    if (piece == kept.end()) {
      if (NULL_CUDA_DONE("take ", std::to_string(bytes)) != cudaSuccess) return nullptr;
      piece = kept.insert(kept.end(), bytes);
    }
    void* memory = std::malloc(*piece);
    used[memory] = *piece;
    kept.erase(piece);
    return memory;
  }
  void give_back(void* memory) {
    kept.push_back(used.at(memory));
    used.erase(memory);
    std::free(memory);
  }
  void trim() {
    std::size_t held = 0;
    for (const std::size_t size : kept) held += size;
    for (const auto& piece : used) held += piece.second;
    while (held > threshold && !kept.empty()) {
      NULL_CUDA_DONE("give up ", std::to_string(kept.back()));
      held -= kept.back();
      kept.pop_back();
    }
  }
};
inline cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  null_cuda::state().pools.push_back(*pool = new CUpool);
  return NULL_CUDA_DONE("new pool of ", std::to_string(properties->location.id));
}
inline cudaError_t cudaMemPoolDestroy(cudaMemPool_t) { return cudaSuccess; }
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr, void* value) {
  return pool->threshold = *static_cast<unsigned long long*>(value), cudaSuccess;
}
inline cudaError_t cudaMallocFromPoolAsync(void** memory, std::size_t bytes, cudaMemPool_t pool, cudaStream_t) {
  return (*memory = pool->take(bytes)) == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t) {
  for (CUpool* pool : null_cuda::state().pools) {
    if (pool->used.count(memory) != 0) pool->give_back(memory);
  }
  return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = null_cuda::new_handle<cudaStream_t>();
  return NULL_CUDA_DONE("new stream ", null_cuda::text(*stream));
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = null_cuda::new_handle<cudaEvent_t>();
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventQuery(cudaEvent_t) { return null_cuda::unsafe(); }
inline cudaError_t cudaEventElapsedTime(float* span, cudaEvent_t, cudaEvent_t) {
  return *span = 1, null_cuda::unsafe();
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (null_cuda::unsafe() != cudaSuccess) return null_cuda::unsafe();
  return NULL_CUDA_DONE("wait on host for ", null_cuda::text(event));
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return NULL_CUDA_DONE("record ", null_cuda::text(event) + " on " + null_cuda::text(stream));
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return NULL_CUDA_DONE("wait for ", null_cuda::text(event) + " on " + null_cuda::text(stream));
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (null_cuda::unsafe() != cudaSuccess) return null_cuda::unsafe();
  for (CUpool* pool : null_cuda::state().pools) pool->trim();
  return NULL_CUDA_DONE("synchronize ", null_cuda::text(stream));
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return NULL_CUDA_DONE("copy ", std::to_string(bytes) + " from " + null_cuda::text(from) + " to " +
                                     null_cuda::text(to) + " on " + null_cuda::text(stream));
}
inline cudaError_t cudaMemsetAsync(void*, int, std::size_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  return NULL_CUDA_DONE("launch ", null_cuda::text(graph) + " on " + null_cuda::text(stream));
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return cudaSuccess; }
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  return *graph = null_cuda::new_handle<cudaGraph_t>(), cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
inline cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, std::size_t* count) {
  return *count = 1, cudaSuccess;
}
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* graph, cudaGraph_t, unsigned long long) {
  return *graph = null_cuda::new_handle<cudaGraphExec_t>(), cudaSuccess;
}
inline cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
