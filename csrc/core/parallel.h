// Work shared among threads that live for one call.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace finercam {

// Calls task(i) once for each i in [0, count). What a task computes must depend on i alone; then the result does not
// depend on the number of threads. Once a task has thrown, as for want of memory, no other is begun, and the first
// exception is thrown here when all threads have ended.
template <typename Task>
void parallel_for(std::int64_t count, int threads, const Task& task) {
  std::atomic<std::int64_t> next{0};
  std::atomic_flag has_failed = ATOMIC_FLAG_INIT;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      for (std::int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(i);
    } catch (...) {
      next.store(count);
      if (!has_failed.test_and_set()) failure = std::current_exception();
    }
  };
  const std::int64_t helpers = std::min<std::int64_t>(threads, count) - 1;
  std::vector<std::thread> pool;
  pool.reserve(static_cast<std::size_t>(std::max<std::int64_t>(helpers, 0)));
  try {
    for (std::int64_t i = 0; i < helpers; ++i) pool.emplace_back(work);
  } catch (const std::exception&) {
    // The system refuses more threads: those that run, and this one, do the work.
  }
  work();
  for (std::thread& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace finercam
