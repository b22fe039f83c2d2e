// One instruction from its text: opcode, modifiers, operands.
#include <algorithm>
#include <set>

#include "operands.h"
#include "program.h"

namespace ptx {
namespace {

struct Plain {
  Op op;
  std::size_t inputs;  // or, in kWhole, all operands
};

// Of those that read their operands in order and write one register.
const std::unordered_map<std::string, Plain> kPlain = {
    {"abs", {Op::kAbsolute, 1}},      {"add", {Op::kAdd, 2}},
    {"and", {Op::kAnd, 2}},           {"bfi", {Op::kBitFieldInsert, 4}},
    {"bfind", {Op::kFindLeading, 1}}, {"brev", {Op::kReverseBits, 1}},
    {"clz", {Op::kLeadingZeros, 1}},  {"cvt", {Op::kConvert, 1}},
    {"div", {Op::kDivide, 2}},        {"ex2", {Op::kExp2, 1}},
    {"fma", {Op::kMultiplyAdd, 3}},   {"mad", {Op::kMultiplyAdd, 3}},
    {"max", {Op::kMaximum, 2}},       {"min", {Op::kMinimum, 2}},
    {"mul", {Op::kMultiply, 2}},      {"neg", {Op::kNegate, 1}},
    {"not", {Op::kNot, 1}},           {"or", {Op::kOr, 2}},
    {"popc", {Op::kCountBits, 1}},    {"rcp", {Op::kReciprocal, 1}},
    {"rem", {Op::kRemainder, 2}},     {"selp", {Op::kSelect, 3}},
    {"setp", {Op::kCompare, 2}},      {"shl", {Op::kShiftLeft, 2}},
    {"shr", {Op::kShiftRight, 2}},    {"sqrt", {Op::kSquareRoot, 1}},
    {"sub", {Op::kSubtract, 2}},      {"xor", {Op::kXor, 2}},
};

// Of those that are told apart by their modifiers, and how many operands each has.
const std::unordered_map<std::string, Plain> kWhole = {
    {"bar.sync", {Op::kBarrier, 1}},
    {"barrier.sync", {Op::kBarrier, 1}},
    {"bar.warp.sync", {Op::kWarpBarrier, 1}},
    {"bar.red.and.pred", {Op::kBarrierAnd, 3}},
    {"bar.red.or.pred", {Op::kBarrierOr, 3}},
    {"barrier.cluster.arrive", {Op::kClusterArrive, 0}},
    {"barrier.cluster.arrive.aligned", {Op::kClusterArrive, 0}},
    {"barrier.cluster.wait", {Op::kClusterWait, 0}},
    {"barrier.cluster.wait.aligned", {Op::kClusterWait, 0}},
    {"membar.gl", {Op::kFence, 0}},
    {"fence.acq_rel.gpu", {Op::kFence, 0}},
    {"ret", {Op::kReturn, 0}},
    {"shfl.sync.bfly.b32", {Op::kShuffle, 5}},
    {"vote.sync.ballot.b32", {Op::kBallot, 3}},
    {"match.any.sync.b32", {Op::kMatchAny, 3}},
    {"shf.l.wrap.b32", {Op::kFunnelLeft, 4}},
    {"mapa.u64", {Op::kMapRank, 3}},
    {"cvta.to.global.u64", {Op::kMove, 2}},
    {"cvta.shared.u64", {Op::kToGeneric, 2}},
    {"atom.global.add.u32", {Op::kAtomicAdd, 3}},
    {"bra", {Op::kBranch, 1}},
    {"bra.uni", {Op::kBranch, 1}},
};

struct Compared {
  Comparison comparison;
  bool true_for_nan;
};

// For unsigned integers lo, ls, hi and hs.
const std::unordered_map<std::string, Compared> kComparisons = {
    {"eq", {Comparison::kEqual, false}},        {"equ", {Comparison::kEqual, true}},
    {"ne", {Comparison::kNotEqual, false}},     {"neu", {Comparison::kNotEqual, true}},
    {"lt", {Comparison::kLess, false}},         {"ltu", {Comparison::kLess, true}},
    {"le", {Comparison::kLessEqual, false}},    {"leu", {Comparison::kLessEqual, true}},
    {"gt", {Comparison::kGreater, false}},      {"gtu", {Comparison::kGreater, true}},
    {"ge", {Comparison::kGreaterEqual, false}}, {"geu", {Comparison::kGreaterEqual, true}},
    {"lo", {Comparison::kLess, false}},         {"ls", {Comparison::kLessEqual, false}},
    {"hi", {Comparison::kGreater, false}},      {"hs", {Comparison::kGreaterEqual, false}},
    {"nan", {Comparison::kIsNan, true}},
};

// Which caches are used, and what this interpreter does exactly in any case.
const std::set<std::string> kNoDifference = {"approx", "ca", "cg", "cs", "full", "lo", "nc", "shiftamt", "wb"};
// The low half is what is kept anyway; of bfind, `shiftamt` is the only form that is read.

void read_modifier(Instruction& i, const std::string& opcode, const std::string& modifier) {
  const Type type = type_of(modifier);
  if (type != Type::kNone) {
    (i.type == Type::kNone ? i.type : i.from) = type;
    return;
  }
  const auto compared = kComparisons.find(modifier);
  if (opcode == "setp" && compared != kComparisons.end()) {
    i.comparison = compared->second.comparison;
    i.true_for_nan = compared->second.true_for_nan;
    return;
  }
  static const std::unordered_map<std::string, Space> spaces = {
      {"global", Space::kGlobal}, {"shared", Space::kShared}, {"param", Space::kParameter}};
  const auto space = spaces.find(modifier);
  const std::size_t size = modifier.size();
  if (space != spaces.end()) {
    i.space = space->second;
  } else if (modifier[0] == 'r' && (size == 2 || (size == 3 && modifier[2] == 'i'))) {
    i.rounding = modifier[1];
    i.to_integer = size == 3;
  } else if (modifier == "sat") {
    i.saturate = true;
  } else if (modifier == "ftz") {
    i.flush = true;
  } else if (modifier == "hi") {
    i.high = true;
  } else if (modifier == "wide") {
    i.wide = true;
  } else if (modifier == "v2" || modifier == "v4") {
    i.vector = modifier[1] - '0';
  } else if (kNoDifference.count(modifier) == 0) {
    throw Fault("the interpreter does not know ." + modifier);
  }
}

void read_memory(Instruction& i, const Operands& operands, std::size_t value, std::size_t address) {
  operands.expect(2);
  const int promised = i.vector;
  operands.vector(value, i);
  if (i.vector != promised) throw Fault("a vector of another size");
  operands.address(address, i);
}

void read_whole(Instruction& i, const Operands& operands, std::size_t count) {
  switch (i.op) {
    case Op::kBarrier:
    case Op::kReturn:
    case Op::kFence:
    case Op::kClusterArrive:
    case Op::kClusterWait:
    case Op::kBranch:  // whose label the kernel's reader looks up
      return;
    case Op::kWarpBarrier:
      i.in[3] = operands.at(0);
      return;
    case Op::kAtomicAdd:
      i.to = operands.at(0);
      operands.address(1, i);
      i.in[1] = operands.at(2);
      return;
    case Op::kBallot:
    case Op::kMatchAny:
      i.to = operands.at(0);
      i.in[0] = operands.at(1);
      i.in[3] = operands.at(2);
      return;
    case Op::kShuffle:
      operands.pair(0, i.to, i.to_predicate);
      for (std::size_t j = 0; j < 4; ++j) i.in[j] = operands.at(j + 1);
      return;
    case Op::kBarrierAnd:
    case Op::kBarrierOr:
      i.to = operands.at(0);
      i.in[0] = operands.at(2);
      return;
    default:  // a register, and what it is made of
      i.to = operands.at(0);
      for (std::size_t j = 1; j < count; ++j) i.in[j - 1] = operands.at(j);
  }
}

}  // namespace

void decode(Instruction& i, const Modifiers& opcode, Operands& operands) {
  std::string whole = opcode[0];
  for (std::size_t j = 1; j < opcode.size(); ++j) whole += "." + opcode[j];
  const auto special = kWhole.find(whole);
  if (special != kWhole.end()) {
    i.op = special->second.op;
    operands.expect(special->second.inputs);
    i.type = type_of(opcode.back());
    if (i.op == Op::kAtomicAdd) i.space = Space::kGlobal;
    read_whole(i, operands, special->second.inputs);
    return;
  }
  const auto plain = kPlain.find(opcode[0]);
  const bool memory = opcode[0] == "ld" || opcode[0] == "st";
  if (plain == kPlain.end() && !memory && opcode[0] != "mov")
    throw Fault("the interpreter does not know this instruction");
  for (std::size_t j = 1; j < opcode.size(); ++j) read_modifier(i, opcode[0], opcode[j]);
  if (opcode[0] == "ld") {
    i.op = Op::kLoad;
    read_memory(i, operands, 0, 1);
  } else if (opcode[0] == "st") {
    i.op = Op::kStore;
    read_memory(i, operands, 1, 0);
  } else if (opcode[0] == "mov") {
    operands.expect(2);
    i.op = operands.is_vector(0) ? Op::kUnpack : operands.is_vector(1) ? Op::kPack : Op::kMove;
    if (i.op != Op::kMove) operands.vector(i.op == Op::kUnpack ? 0 : 1, i);
    if (i.op != Op::kUnpack) i.to = operands.at(0);
    if (i.op != Op::kPack) i.in[0] = operands.at(1);
  } else {
    i.op = plain->second.op;
    operands.expect(plain->second.inputs + 1);
    i.to = operands.at(0);
    for (std::size_t j = 0; j < plain->second.inputs; ++j) i.in[j] = operands.at(j + 1);
  }
}

}  // namespace ptx
