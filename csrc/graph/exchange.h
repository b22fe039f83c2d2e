// What lies around a run on a GPU: its inputs brought, its results taken away, and its place among the streams.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/device.h"
#include "graph/stream.h"

namespace finercam {

// `bytes` from an address of the device to an offset of the results.
struct ResultCopy {
  const void* from;
  std::size_t to, bytes;
};

struct RunInputs {
  const void* images;  // of the device, or of pinned memory of the host
  void* images_at;     // where the run reads them; null: it reads `images` themselves
  std::size_t image_bytes;
  std::optional<std::string_view> questions;  // all but images and class embeddings; none: those of the run before
};

// The runs of one set of buffers follow one another, each on the stream of its caller, or on one that is had here where
// the caller is the host or a default stream: libraries synchronise on those, and they cannot be captured. Of one
// thread at a time. A run is begin, what queues it on the stream that this gives, and end; or abandon, where that
// failed. `replay` is all three of a captured run. Everything throws CudaError.
class Exchange {
 public:
  // questions: where runs read them, on the device.
  Exchange(int device, void* questions, std::size_t question_bytes);

  // caller: the handle of the stream that made the images and reads the results; none: the host.
  void* begin(const RunInputs& inputs, std::optional<void*> caller);
  void end(const std::vector<ResultCopy>& copies, void* results);
  void abandon() noexcept;

  void replay(const Graph& graph, const RunInputs& inputs, std::optional<void*> caller,
              const std::vector<ResultCopy>& copies, void* results);

  const Stream& stream() const { return stream_; }
  void synchronize() const { done_.synchronize(); }  // waits on the host for the last run

 private:
  // A copy of the questions in pinned memory, which may be written again once it has been read.
  struct Staged {
    Staged(std::size_t bytes, int device) : memory(bytes, device), read(device, false) {}
    PinnedMemory memory;
    Event read;
  };

  void enter(std::optional<void*> caller);
  void ask(const std::optional<std::string_view>& questions);

  static constexpr std::size_t kStaged = 4;  // runs that may be queued before the host waits for the first of them

  int device_;
  void* questions_;
  Stream stream_;
  Event done_, entered_;
  std::array<Staged, kStaged> staged_;
  std::size_t next_ = 0;
  std::string asked_;
  bool answered_ = false;  // whether the device has what was asked
  std::optional<void*> caller_;
  void* on_;
  bool begun_ = false;
};

}  // namespace finercam
