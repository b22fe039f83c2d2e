#include "kernels/cam.h"

#include "emulation.h"

// How many loads by 16 bytes the kernel made, or -1 where one was not aligned or left the inputs.
// sizes: N, P, C, h, w; then how many blocks share a map (0: by size), and whether as a cluster. strides of A: n, c, y,
// x; of G: n, p, c, y, x; in elements. *_last: behind the last element.
extern "C" std::int64_t emulated_cam(int method, int dtype, const void* a, const void* a_last,
                                     const std::int64_t* a_strides, const void* g, const void* g_last,
                                     const std::int64_t* g_strides, const std::int64_t* sizes, int multiprocessors,
                                     float* map) {
  using namespace finercam;
  CamArgs args{};
  args.method = static_cast<Method>(method);
  args.contrasts = sizes[1];
  args.contrast_stride = g_strides[1];
  args.activations = {a,
                      static_cast<DType>(dtype),
                      sizes[0],
                      sizes[2],
                      sizes[3],
                      sizes[4],
                      a_strides[0],
                      a_strides[1],
                      a_strides[2],
                      a_strides[3]};
  const bool weights = args.method == Method::kChannelWeights;
  args.gradients = {g,
                    static_cast<DType>(dtype),
                    sizes[0],
                    sizes[2],
                    weights ? 1 : sizes[3],
                    weights ? 1 : sizes[4],
                    g_strides[0],
                    g_strides[2],
                    g_strides[3],
                    g_strides[4]};
  args.map = map;
  args.sharing = {static_cast<int>(sizes[5]), sizes[6] != 0};
  watch(a, a_last, g, g_last);
  processors = multiprocessors;
  cam_cuda(args, 0, nullptr);
  return watched_loads();
}
