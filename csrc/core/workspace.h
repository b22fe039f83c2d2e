// Memory of a device that an operation needs on its way. For .cu files only.
#pragma once

#include <cstddef>
#include <cuda_runtime.h>

namespace finercam {

// Bytes for what is queued on a stream between its constructor and its destructor, which do not wait; none for 0. In a
// capture they are the graph's. Throws CudaMemoryError where there is too little.
//
// They come from a pool of the process's own, one a device, that threads and streams may share: the driver hands a
// piece to another stream when the work of the former is done. What was given back stays in the pool, up to
// kKeptBytes, so that the same calls again take nothing from the device. (The driver's own pool gives all of it back
// whenever the host waits.)
class Workspace {
 public:
  static constexpr unsigned long long kKeptBytes = 256ull << 20;

  // The device is the current one.
  Workspace(std::size_t bytes, int device, cudaStream_t stream);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* address() const { return memory_; }

 private:
  void* memory_ = nullptr;
  cudaStream_t stream_;
};

}  // namespace finercam
