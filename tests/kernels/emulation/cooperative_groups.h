// The clusters of cooperative groups, of blocks along one axis.
#pragma once

#include <type_traits>

#include "emulation.h"

namespace cooperative_groups {

struct cluster_group {
  static void sync() { cluster_barrier(); }
  static unsigned thread_rank() { return block_rank * block_threads + threadIdx.x; }
  static unsigned num_threads() { return cluster_blocks * block_threads; }
  template <typename T>
  static T* map_shared_rank(T* address, int rank) {
    return static_cast<T*>(of_block(const_cast<std::remove_const_t<T>*>(address), static_cast<unsigned>(rank)));
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
