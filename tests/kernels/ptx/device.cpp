// What tests ask of the device; tests/fakes/ptx.py calls it.
#include <cstring>
#include <memory>

#include "runtime.h"

namespace ptx {

// Never destroyed: the interpreter's arrays are removed from it until the process ends.
Device& device() {
  static auto& only = *new Device;
  return only;
}

void launch(const Kernel& kernel, LaunchOptions options, void** arguments) {
  Device& device = ptx::device();
  const unsigned former = device.launches[kernel.name]++;
  options.seed = former + 1;
  options.turn = former % 2 == 0 ? device.turn : 0;
  try {
    Launch launch(kernel, options, arguments, device.memory);
    launch.run();
    device.vector_loads += launch.vector_loads();
  } catch (const Fault& fault) {
    device.last_fault = fault.what();
    if (device.fault.empty()) device.fault = fault.what();
    throw;
  }
}

}  // namespace ptx

#define PTX_API extern "C" __attribute__((visibility("default")))

// A device of a compute capability as 75, and how long a turn of interleaved threads may be; forgets all launches.
PTX_API void ptx_reset(int capability, int processors, unsigned turn) {
  ptx::Device& device = ptx::device();
  const std::scoped_lock lock(device.mutex);
  device.capability = capability;
  device.processors = processors;
  device.turn = turn;
  device.launches.clear();
  device.vector_loads = 0;
  device.fault.clear();
}

PTX_API void ptx_register(void* base, std::size_t bytes, const char* what, bool writable, bool has_values) {
  ptx::Device& device = ptx::device();
  const std::scoped_lock lock(device.mutex);
  device.memory.add(base, bytes, what, writable, has_values);
}

PTX_API void ptx_unregister(void* base) {
  ptx::Device& device = ptx::device();
  const std::scoped_lock lock(device.mutex);
  device.memory.remove(base);
}

// The first fault since the reset, or an empty text.
PTX_API const char* ptx_fault() { return ptx::device().fault.c_str(); }

PTX_API long ptx_vector_loads() { return ptx::device().vector_loads; }

PTX_API long ptx_launches() {
  long sum = 0;
  for (const auto& [name, count] : ptx::device().launches) sum += count;
  return sum;
}

// A kernel of PTX that is no part of the extension, by blocks of so many threads. False: see ptx_fault().
PTX_API bool ptx_run(const char* text, const char* kernel, const unsigned* grid, unsigned threads, void** arguments) {
  static std::map<std::string, std::unique_ptr<ptx::Module>> modules;
  ptx::Device& device = ptx::device();
  const std::scoped_lock lock(device.mutex);
  std::unique_ptr<ptx::Module>& module = modules[text];
  try {
    if (module == nullptr) module = std::make_unique<ptx::Module>(text);
    ptx::LaunchOptions options;
    std::memcpy(options.grid.of, grid, sizeof options.grid.of);
    options.threads.of[0] = threads;
    ptx::launch(module->kernel(kernel), options, arguments);
    return true;
  } catch (const ptx::Fault& fault) {
    if (device.fault.empty()) device.fault = fault.what();
    return false;
  }
}
