// CUDA devices and their memory, for bindings that know nothing of CUDA.
#pragma once

#include <cstddef>
#include <string>

namespace finercam {

struct CudaStatus {
  int devices;         // usable CUDA devices
  std::string reason;  // why there is none; empty where there is one
};

CudaStatus cuda_status();

// 10 * major + minor of a device, such as 89. Throws CudaError.
int compute_capability(int device);

// As the driver calls it, such as "NVIDIA H200". Throws CudaError.
std::string device_name(int device);

// What was before a device was made current.
struct Former {
  int device;  // -1: the same one
  int mode;    // a cudaStreamCaptureMode
};

// Makes a device the current one of this thread, for libraries that take the current one. And a capture of another
// thread no longer refuses this thread's calls, nor do they end it: those of ONNX Runtime are of the mode "global".
// Throws CudaError.
Former make_current(int device);

// Puts back what was before. A device that has no context yet does not become current: that would make one there, of
// some hundred megabytes.
void restore_current(const Former& former) noexcept;

struct MemoryInfo {
  std::size_t free, total;  // bytes
};

// Of a device. Throws CudaError.
MemoryInfo memory_info(int device);

// Bytes that are freed with their owner: of a device, or of the host, locked for asynchronous copies. Freeing waits for
// work that may still use them. The constructors throw CudaMemoryError where there is too little.
class DeviceMemory {
 public:
  DeviceMemory(std::size_t bytes, int device);
  ~DeviceMemory() { release(); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  void release() noexcept;
  void* address() const { return memory_; }
  std::size_t bytes() const { return bytes_; }
  int device() const { return device_; }

 private:
  void* memory_ = nullptr;
  std::size_t bytes_;
  int device_;
};

class PinnedMemory {
 public:
  PinnedMemory(std::size_t bytes, int device);
  ~PinnedMemory() { release(); }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  void release() noexcept;
  void* address() const { return memory_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void* memory_ = nullptr;
  std::size_t bytes_;
  int device_;
};

}  // namespace finercam
