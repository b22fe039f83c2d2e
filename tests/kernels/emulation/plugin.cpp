#include "emulation.h"
#include "kernels/cam_plugin.cuh"

// As TensorRT would launch the plug-in's kernel of a method, from inputs of so many floats: how many loads by 16 bytes
// it made, or -1 where one was not aligned or left the inputs. grid: x, y, z.
extern "C" std::int64_t emulated_plugin(int method, const float* activations, std::int64_t activation_count,
                                        const float* second, std::int64_t second_count, int channels, int positions,
                                        int prefix, int interleaved, int tile, const unsigned* grid, int threads,
                                        float* map) {
  using namespace finercam;
  watch(activations, activations + activation_count, second, second + second_count);
  visit_method(static_cast<Method>(method), [&](auto policy) {
    launch_emulated(dim3(grid[0], grid[1], grid[2]), threads, [&] {
      cam_plugin<decltype(policy)>(activations, second, channels, positions, prefix, interleaved != 0, tile, map);
    });
  });
  return watched_loads();
}
