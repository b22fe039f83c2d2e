// As much of CUDA's runtime as the extension asks for, over the interpreter: everything is done when a call returns.
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#include <memory>
#include <unordered_map>
#include <vector>

#include "runtime.h"

namespace {

using ptx::Fault;

cudaError_t last_error = cudaSuccess;

// What the compiler leaves of a file: PTX, not compressed, of one architecture or of several.
struct FatBinary {
  std::string contents;
  std::map<int, std::unique_ptr<ptx::Module>> modules;

  const ptx::Kernel& kernel(const std::string& name) {
    if (modules.empty()) read();
    const auto newer = modules.upper_bound(ptx::device().capability);
    if (newer == modules.begin()) throw Fault("no PTX for this device in the extension");
    return std::prev(newer)->second->kernel(name);
  }

  void read() {
    for (std::size_t at = 0; (at = contents.find(".version", at)) != std::string::npos; ++at) {
      const std::string text = contents.c_str() + at;
      const int target = std::atoi(text.c_str() + text.find(".target sm_") + 11);
      modules[target] = std::make_unique<ptx::Module>(text);
    }
  }
};

struct Entry {
  FatBinary* binary;
  std::string name;
};

// By the addresses of the functions that stand for them on the host.
std::unordered_map<const void*, Entry>& entries() {
  static auto& all = *new std::unordered_map<const void*, Entry>;
  return all;
}

struct Call {
  dim3 grid, threads;
  std::size_t shared;
  void* stream;
};
thread_local std::vector<Call> calls;

cudaError_t failed(cudaError_t error, const std::string& what) {
  ptx::Device& device = ptx::device();
  last_error = error;
  device.last_fault = what;
  if (device.fault.empty()) device.fault = what;
  return error;
}

cudaError_t launched(const void* function, const dim3& grid, const dim3& threads, void** arguments, std::size_t shared,
                     unsigned cluster) {
  const std::scoped_lock lock(ptx::device().mutex);
  try {
    if (shared != 0) throw Fault("the interpreter has no dynamic shared memory");
    const auto found = entries().find(function);
    if (found == entries().end()) throw Fault("a kernel that was not registered");
    ptx::LaunchOptions options;
    options.grid = {{grid.x, grid.y, grid.z}};
    options.threads = {{threads.x, threads.y, threads.z}};
    options.cluster = cluster;
    ptx::launch(found->second.binary->kernel(found->second.name), options, arguments);
    return cudaSuccess;
  } catch (const Fault& fault) {
    return failed(cudaErrorLaunchFailure, fault.what());
  }
}

// Memory whose values no kernel may read before it is written.
cudaError_t allocate(void** memory, std::size_t bytes, const char* what, bool has_values) {
  constexpr std::size_t kAlignment = 256;
  const std::scoped_lock lock(ptx::device().mutex);
  *memory = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xCD, bytes);
  ptx::device().memory.add(*memory, bytes, what, true, has_values);
  return cudaSuccess;
}

cudaError_t release(void* memory) {
  const std::scoped_lock lock(ptx::device().mutex);
  if (memory == nullptr) return cudaSuccess;
  if (!ptx::device().memory.starts(memory)) return failed(cudaErrorInvalidValue, "a free of what is not allocated");
  ptx::device().memory.remove(memory);
  std::free(memory);
  return cudaSuccess;
}

}  // namespace

extern "C" {

// What the compiler calls.
void** __cudaRegisterFatBinary(void* wrapper) {
  struct Wrapper {
    int magic, version;
    const unsigned char* data;
  };
  const unsigned char* data = static_cast<Wrapper*>(wrapper)->data;
  std::uint16_t header;
  std::uint64_t rest;
  std::memcpy(&header, data + 6, sizeof header);
  std::memcpy(&rest, data + 8, sizeof rest);
  auto* binary = new FatBinary{{reinterpret_cast<const char*>(data), header + rest}, {}};
  return reinterpret_cast<void**>(binary);
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void** binary, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {
  entries()[function] = {reinterpret_cast<FatBinary*>(binary), name};
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 threads, std::size_t shared, void* stream) {
  calls.push_back({grid, threads, shared, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* threads, std::size_t* shared, void* stream) {
  const Call call = calls.back();
  calls.pop_back();
  *grid = call.grid;
  *threads = call.threads;
  *shared = call.shared;
  *static_cast<void**>(stream) = call.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 threads, void** arguments, std::size_t shared,
                               cudaStream_t) {
  return launched(kernel, grid, threads, arguments, shared, 1);
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 threads, void** arguments, std::size_t shared,
                             cudaStream_t) {
  return launched(function, grid, threads, arguments, shared, 1);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  unsigned cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id != cudaLaunchAttributeClusterDimension) return failed(cudaErrorNotSupported, "attributes");
    const auto& size = config->attrs[i].val.clusterDim;
    if (ptx::device().capability < 90 || size.x != 1 || size.z != 1) return failed(cudaErrorNotSupported, "clusters");
    cluster = size.y;
  }
  return launched(function, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes, cluster);
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : ptx::device().last_fault.c_str();
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const ptx::Device& device = ptx::device();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = device.processors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.capability / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = device.capability % 10;
      return cudaSuccess;
    case cudaDevAttrClusterLaunch:
      *value = device.capability >= 90;
      return cudaSuccess;
    default:
      return failed(cudaErrorNotSupported, "attribute " + std::to_string(attribute));
  }
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "an interpreter of PTX");
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = *total = std::size_t{1} << 33;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) { return allocate(memory, bytes, "device memory", false); }
cudaError_t cudaFree(void* memory) { return release(memory); }
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  return allocate(memory, bytes, "the host's pinned memory", true);
}
cudaError_t cudaFreeHost(void* memory) { return release(memory); }
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  *pool = nullptr;
  return cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t) { return cudaSuccess; }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMallocFromPoolAsync(void** memory, std::size_t bytes, cudaMemPool_t, cudaStream_t) {
  return allocate(memory, bytes, "the workspace", false);
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t) { return release(memory); }
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  const std::scoped_lock lock(ptx::device().mutex);
  if (!ptx::device().memory.mark_written(memory, bytes)) return failed(cudaErrorInvalidValue, "memset out of bounds");
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  const std::scoped_lock lock(ptx::device().mutex);
  ptx::Memory& memory = ptx::device().memory;
  const bool from_there = memory.find(reinterpret_cast<std::uint64_t>(from), bytes) != nullptr;
  if (!memory.mark_written(to, bytes) && kind != cudaMemcpyDeviceToHost) {
    return failed(cudaErrorInvalidValue, "memcpy out of bounds");
  }
  if (!from_there && kind != cudaMemcpyHostToDevice) return failed(cudaErrorInvalidValue, "memcpy from out of bounds");
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
// All that was asked for has ended when the call returns.
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = nullptr;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
// Every stream is the default one, or is captured.
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream == nullptr ? cudaStreamCaptureStatusNone : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

}  // extern "C"
