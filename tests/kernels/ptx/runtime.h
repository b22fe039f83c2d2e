// The device that the stand-in of CUDA's runtime has, and what tests ask of it.
#pragma once

#include <map>
#include <mutex>
#include <string>

#include "launch.h"

namespace ptx {

struct Device {
  std::mutex mutex;
  Memory memory;
  int capability = 75, processors = 6;
  unsigned turn = 0;
  std::map<std::string, unsigned> launches;  // of each kernel
  long vector_loads = 0;
  std::string fault;       // the first that no test has taken
  std::string last_fault;  // what cudaGetErrorString says
};
Device& device();

// Every other launch of a kernel, from the first one on, interleaves its threads. Throws a Fault, which is kept.
void launch(const Kernel& kernel, LaunchOptions options, void** arguments);

}  // namespace ptx
