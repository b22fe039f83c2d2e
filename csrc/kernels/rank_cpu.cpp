// A radix sort of each map from the least significant digit, three of 11 bits: stable, so that ties keep their order.
// The three histograms are counted while the keys are made; the last pass writes ranks and no keys.
#include <atomic>
#include <memory>
#include <numeric>

#include "core/clones.h"
#include "core/parallel.h"
#include "kernels/rank.h"
#include "kernels/rank_key.h"

namespace finercam {
namespace {

constexpr int kDigits = 3;
constexpr int kBits = 11;
constexpr std::uint32_t kBuckets = 1u << kBits;

struct Item {
  std::uint32_t key;
  std::int32_t pixel;
};

std::uint32_t digit_of(std::uint32_t key, int digit) { return (key >> (digit * kBits)) & (kBuckets - 1); }

// keys[i] = the key of row[i * stride]; whether all values are finite.
FINERCAM_CLONES bool write_keys(const float* row, std::int64_t stride, std::uint32_t* __restrict keys,
                                std::int64_t count) {
  std::uint32_t wrong = 0;
  if (stride == 1) {
    for (std::int64_t i = 0; i < count; ++i) {
      const RankKey found = rank_key(row[i]);
      keys[i] = found.key;
      wrong |= found.finite ? 0u : 1u;
    }
  } else {
    for (std::int64_t i = 0; i < count; ++i) {
      const RankKey found = rank_key(row[i * stride]);
      keys[i] = found.key;
      wrong |= found.finite ? 0u : 1u;
    }
  }
  return wrong == 0;
}

class MapRanker {
 public:
  explicit MapRanker(const RankArgs& args)
      : args_(args),
        pixels_(args.pixels()),
        keys_(new std::uint32_t[static_cast<std::size_t>(pixels_)]),
        items_{std::unique_ptr<Item[]>(new Item[static_cast<std::size_t>(pixels_)]),
               std::unique_ptr<Item[]>(new Item[static_cast<std::size_t>(pixels_)])} {}

  // Whether the map is finite; else its ranks are not written.
  bool rank(std::int64_t image) {
    if (!make_keys(args_.maps + image * args_.strides.batch)) return false;
    count();
    for (std::int64_t i = 0; i < pixels_; ++i) {
      const std::uint32_t key = keys_[static_cast<std::size_t>(i)];
      items_[0][next(key, 0)] = {key, static_cast<std::int32_t>(i)};
    }
    for (std::int64_t i = 0; i < pixels_; ++i) {
      const Item item = items_[0][static_cast<std::size_t>(i)];
      items_[1][next(item.key, 1)] = item;
    }
    std::int32_t* ranks = args_.ranks + image * pixels_;
    for (std::int64_t i = 0; i < pixels_; ++i) {
      const Item item = items_[1][static_cast<std::size_t>(i)];
      ranks[item.pixel] = static_cast<std::int32_t>(next(item.key, 2));
    }
    return true;
  }

 private:
  bool make_keys(const float* map) {
    const Strides& strides = args_.strides;
    if (strides.is_flat(args_.height, args_.width)) return write_keys(map, 1, keys_.get(), pixels_);
    bool finite = true;
    for (std::int64_t y = 0; y < args_.height; ++y) {
      finite &= write_keys(map + y * strides.row, strides.column, keys_.get() + y * args_.width, args_.width);
    }
    return finite;
  }

  // places_[d][b]: where the first item of bucket b goes when sorting by digit d.
  void count() {
    for (auto& digit : places_) std::fill(std::begin(digit), std::end(digit), 0u);
    for (std::int64_t i = 0; i < pixels_; ++i) {
      const std::uint32_t key = keys_[static_cast<std::size_t>(i)];
      for (int digit = 0; digit < kDigits; ++digit) ++places_[digit][digit_of(key, digit)];
    }
    for (auto& digit : places_) std::exclusive_scan(std::begin(digit), std::end(digit), std::begin(digit), 0u);
  }

  std::uint32_t next(std::uint32_t key, int digit) { return places_[digit][digit_of(key, digit)]++; }

  const RankArgs& args_;
  const std::int64_t pixels_;
  std::unique_ptr<std::uint32_t[]> keys_;
  std::unique_ptr<Item[]> items_[2];
  std::uint32_t places_[kDigits][kBuckets];
};

}  // namespace

std::int64_t rank_cpu(const RankArgs& args, int threads) {
  std::atomic<std::int64_t> first_wrong{args.batch};
  parallel_for(args.batch, threads, [&](std::int64_t image) {
    if (MapRanker(args).rank(image)) return;
    std::int64_t known = first_wrong.load();
    while (image < known && !first_wrong.compare_exchange_weak(known, image)) {
    }
  });
  return first_wrong == args.batch ? -1 : first_wrong.load();
}

}  // namespace finercam
