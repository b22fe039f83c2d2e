// PTX text as instructions: those that the compiler makes of csrc/kernels, and no others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace ptx {

// What a kernel must not do, or the interpreter cannot.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Type {
  kNone,
  kPredicate,
  kU8,
  kU16,
  kU32,
  kU64,
  kS8,
  kS16,
  kS32,
  kS64,
  kB8,
  kB16,
  kB32,
  kB64,
  kF16,
  kF32,
  kF64
};
unsigned bytes_of(Type type);
bool is_signed(Type type);
bool is_float(Type type);

enum class Space { kGeneric, kGlobal, kShared, kParameter };

enum class Op {
  // Those that need their operands alone; see arithmetic.h.
  kAbsolute,
  kAdd,
  kAnd,
  kBitFieldInsert,
  kCompare,
  kConvert,
  kCountBits,
  kDivide,
  kExp2,
  kFindLeading,
  kFunnelLeft,
  kLeadingZeros,
  kMaximum,
  kMinimum,
  kMultiply,
  kMultiplyAdd,
  kNegate,
  kNot,
  kOr,
  kReciprocal,
  kRemainder,
  kReverseBits,
  kSelect,
  kShiftLeft,
  kShiftRight,
  kSquareRoot,
  kSubtract,
  kXor,
  // Of one thread.
  kAtomicAdd,
  kBranch,
  kFence,
  kLoad,
  kMapRank,
  kMove,
  kPack,
  kReturn,
  kStore,
  kToGeneric,
  kUnpack,
  // Of a warp, a block, a cluster.
  kBallot,
  kMatchAny,
  kShuffle,
  kWarpBarrier,
  kBarrier,
  kBarrierAnd,
  kBarrierOr,
  kClusterArrive,
  kClusterWait,
};

enum class Comparison { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kIsNan };

enum class Special { kThread, kThreads, kBlock, kBlocks, kClusterRank, kClusterBlocks };

struct Operand {
  enum class Kind { kNone, kRegister, kImmediate, kSpecial };
  Kind kind = Kind::kNone;
  int index = 0;  // of the register, or of the special register's axis
  Special special = Special::kThread;
  std::uint64_t value = 0;
};

struct Instruction {
  Op op = Op::kReturn;
  Type type = Type::kNone;
  Type from = Type::kNone;  // of a conversion
  Space space = Space::kGeneric;
  Operand to;
  Operand to_predicate;  // of a shuffle
  Operand in[4];         // of a load or a store: the address, and of an atomic one the value
  Operand parts[4];      // the registers of a vector
  int vector = 1;        // how many
  std::int64_t offset = 0;
  std::uint64_t used = ~std::uint64_t{0};  // which bytes of a load the compiler uses
  Operand guard;
  bool guard_negated = false;
  Comparison comparison = Comparison::kEqual;
  bool true_for_nan = false;
  char rounding = 'n';  // to the nearest, 'm': down, 'z': to zero
  bool to_integer = false, saturate = false, flush = false, high = false, wide = false;
  std::size_t target = 0;  // of a branch
  int line = 0;
  std::string text;
};

struct Variable {
  std::string name;
  std::size_t offset, bytes;
};

struct Kernel {
  std::string name;
  std::vector<Variable> parameters;
  std::size_t parameter_bytes = 0;
  std::vector<Instruction> code;
  std::vector<std::uint64_t> register_masks;  // of the bits that each has
  std::vector<Variable> shared;
  std::size_t shared_bytes = 0;     // with the gaps between the variables
  std::size_t shared_declared = 0;  // as the compiler lays them out
  unsigned most_threads = 1024;
};

// The kernels of a text; each is read when it is first asked for.
class Module {
 public:
  explicit Module(std::string text);
  const Kernel& kernel(const std::string& name);

 private:
  std::string text_;
  std::map<std::string, std::size_t> entries_;  // where each begins
  std::vector<std::string> shared_;             // the variables that belong to no kernel: to each that names them
  std::map<std::string, std::unique_ptr<Kernel>> kernels_;
};

// What fills in an Instruction from the parts of its text; operands.h has how they are read.
class Operands;
using Modifiers = std::vector<std::string>;
void decode(Instruction& instruction, const Modifiers& opcode, Operands& operands);

}  // namespace ptx
