#include "graph/exchange.h"

#include <cstdint>
#include <cstring>

#include "core/check.h"
#include "core/cuda_error.h"

namespace finercam {
namespace {

// 0 and cudaStreamLegacy, cudaStreamPerThread.
bool is_default(void* stream) { return reinterpret_cast<std::uintptr_t>(stream) <= 2; }

}  // namespace

Exchange::Exchange(int device, void* questions, std::size_t question_bytes)
    : device_(device),
      questions_(questions),
      stream_(device),
      done_(device, false),
      entered_(device, false),
      staged_{Staged(question_bytes, device), Staged(question_bytes, device), Staged(question_bytes, device),
              Staged(question_bytes, device)},
      asked_(question_bytes, '\0'),
      on_(stream_.handle()) {
  stream_.record(done_);
}

void* Exchange::begin(const RunInputs& inputs, std::optional<void*> caller) {
  begun_ = false;
  enter(caller);
  begun_ = true;
  if (inputs.images_at != nullptr) {
    Stream(device_, on_).copy(inputs.images_at, inputs.images, inputs.image_bytes);
  }
  ask(inputs.questions);
  return on_;
}

void Exchange::enter(std::optional<void*> caller) {
  const bool elsewhere = caller && !is_default(*caller);
  if (caller && !elsewhere) {
    Stream(device_, *caller).record(entered_);
    stream_.wait(entered_);
  }
  void* on = elsewhere ? *caller : stream_.handle();
  if (on != on_) Stream(device_, on).wait(done_);
  caller_ = caller;
  on_ = on;
}

void Exchange::ask(const std::optional<std::string_view>& questions) {
  if (questions) {
    FINERCAM_CHECK(questions->size() == asked_.size(), "exchange", "expected ", asked_.size(),
                   " bytes of questions, got ", questions->size());
    if (*questions != asked_) {
      answered_ = false;
      asked_.assign(*questions);
    }
  }
  if (answered_) return;
  const Staged& staged = staged_[next_];
  next_ = (next_ + 1) % kStaged;
  staged.read.synchronize();
  std::memcpy(staged.memory.address(), asked_.data(), asked_.size());
  const Stream on(device_, on_);
  on.copy(questions_, staged.memory.address(), asked_.size());
  on.record(staged.read);
  answered_ = true;
}

void Exchange::end(const std::vector<ResultCopy>& copies, void* results) {
  const Stream on(device_, on_);
  for (const ResultCopy& copy : copies) on.copy(static_cast<char*>(results) + copy.to, copy.from, copy.bytes);
  on.record(done_);
  if (caller_ && is_default(*caller_)) Stream(device_, *caller_).wait(done_);
}

void Exchange::abandon() noexcept {
  answered_ = false;
  if (!begun_) return;
  try {
    Stream(device_, on_).record(done_);  // what had been queued may still use the buffers
  } catch (const CudaError&) {           // of a device that is lost
  }
}

void Exchange::replay(const Graph& graph, const RunInputs& inputs, std::optional<void*> caller,
                      const std::vector<ResultCopy>& copies, void* results) {
  try {
    begin(inputs, caller);
    Stream(device_, on_).launch(graph);
    end(copies, results);
  } catch (...) {
    abandon();
    throw;
  }
}

}  // namespace finercam
