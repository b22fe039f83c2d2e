#include "program.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <sstream>

#include "operands.h"

namespace ptx {
namespace {

std::size_t rounded_up(std::size_t value, std::size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct Declared {
  std::string name;
  std::size_t alignment = 1, bytes = 0;
};

// ".param .align 8 .b8 name[112]", ".shared .align 4 .b8 name[64]", ".param .u64 .ptr .align 1 name".
Declared declared(const std::string& text) {
  Declared found;
  Type type = Type::kB8;
  std::stringstream words(text);
  for (std::string word; words >> word;) {
    if (word == ".align") {
      words >> found.alignment;
    } else if (word[0] != '.') {
      found.name = word;
    } else if (type_of(word.substr(1)) != Type::kNone) {
      type = type_of(word.substr(1));
    } else if (word != ".param" && word != ".shared" && word != ".ptr" && word != ".global") {
      throw Fault("the interpreter does not know " + word + " of " + text);
    }
  }
  std::size_t count = 1;
  const std::size_t bracket = found.name.find('[');
  if (bracket != std::string::npos) {
    count = std::strtoull(found.name.c_str() + bracket + 1, nullptr, 10);
    found.name.resize(bracket);
  }
  found.bytes = count * bytes_of(type);
  found.alignment = std::max<std::size_t>(found.alignment, bytes_of(type));
  return found;
}

// One kernel, statement by statement.
class Reader {
 public:
  Reader(const std::string& text, std::size_t first, const std::vector<std::string>& shared) : text_(text) {
    line_ = 1 + static_cast<int>(std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(first), '\n'));
    std::size_t at = text.find_first_not_of(" \t\n", first + 6);  // behind ".entry"
    const std::size_t parenthesis = text.find('(', at), closed = text.find(')', parenthesis);
    kernel_->name = trimmed(text.substr(at, parenthesis - at));
    for (const std::string& parameter : listed(text.substr(parenthesis + 1, closed - parenthesis - 1))) {
      add_parameter(declared(parameter));
    }
    const std::size_t body = text.find('{', closed);
    const std::size_t bound = text.find(".maxntid", closed);
    if (bound < body) kernel_->most_threads = static_cast<unsigned>(std::atoi(text.c_str() + bound + 8));
    line_ += static_cast<int>(std::count(text.begin() + static_cast<std::ptrdiff_t>(first),
                                         text.begin() + static_cast<std::ptrdiff_t>(body), '\n'));
    const std::string all = text.substr(body, text.find(".entry", body) - body);
    for (const std::string& variable : shared) {
      if (all.find(declared(variable).name) != std::string::npos) add_shared(declared(variable));
    }
    read_body(body);
  }

  std::unique_ptr<Kernel> take() { return std::move(kernel_); }

 private:
  void add_parameter(const Declared& parameter) {
    const std::size_t offset = rounded_up(kernel_->parameter_bytes, parameter.alignment);
    kernel_->parameters.push_back({parameter.name, offset, parameter.bytes});
    kernel_->parameter_bytes = offset + parameter.bytes;
    names_.addresses[parameter.name] = offset;
  }

  // With a gap before it that no access may touch, and at an address with no more alignment than was asked for.
  void add_shared(const Declared& variable) {
    kernel_->shared_declared = rounded_up(kernel_->shared_declared, variable.alignment) + variable.bytes;
    std::size_t offset = rounded_up(kernel_->shared_bytes + 64, 128);
    if (variable.alignment < 128) offset += variable.alignment;
    kernel_->shared.push_back({variable.name, offset, variable.bytes});
    kernel_->shared_bytes = offset + variable.bytes;
    names_.addresses[variable.name] = offset;
  }

  void add_registers(const std::string& type_name, const std::string& names) {
    const Type type = type_of(type_name);
    const unsigned bits = type == Type::kPredicate ? 1 : 8 * bytes_of(type);
    const std::uint64_t mask = bits == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1;
    for (const std::string& name : listed(names)) {
      const std::size_t count = name.find('<');
      const int last = count == std::string::npos ? 1 : std::atoi(name.c_str() + count + 1);
      for (int i = 0; i < last; ++i) {
        names_.registers[count == std::string::npos ? name : name.substr(0, count) + std::to_string(i)] =
            static_cast<int>(kernel_->register_masks.size());
        kernel_->register_masks.push_back(mask);
      }
    }
  }

  void read_body(std::size_t at) {
    int depth = 0;
    do {
      const char c = text_[at];
      if (c == '\n') ++line_;
      if (c == '/' && text_[at + 1] == '/') {
        at = text_.find('\n', at);
        continue;
      }
      if (c == '{') ++depth;
      if (c == '}') --depth;
      if (c == '{' || c == '}' || std::isspace(static_cast<unsigned char>(c))) {
        ++at;
        continue;
      }
      const std::size_t last = text_.find_first_of(";:", at);
      if (last == std::string::npos) throw Fault("the PTX ends within a kernel");
      const std::string statement = text_.substr(at, last - at);
      if (text_[last] == ':') {
        labels_[statement] = kernel_->code.size();
      } else {
        read_statement(statement);
      }
      line_ += static_cast<int>(std::count(statement.begin(), statement.end(), '\n'));
      at = last + 1;
    } while (depth > 0);
    for (const auto& [index, label] : branches_) {
      if (labels_.count(label) == 0) throw Fault("no label " + label);
      kernel_->code[index].target = labels_[label];
    }
    kernel_->code.emplace_back();  // the end returns
  }

  void read_statement(const std::string& statement) {
    const std::size_t space = statement.find_first_of(" \t");
    const std::string word = statement.substr(0, space);
    const std::string rest = space == std::string::npos ? "" : trimmed(statement.substr(space));
    if (word == ".reg") {
      const std::size_t type_end = rest.find_first_of(" \t");
      add_registers(rest.substr(1, type_end - 1), rest.substr(type_end));
    } else if (word == ".shared") {
      add_shared(declared(statement));
    } else if (word == ".pragma") {
      const std::size_t mask = rest.find("used_bytes_mask ");
      if (mask != std::string::npos) used_ = std::strtoull(rest.c_str() + mask + 16, nullptr, 0);
    } else {
      read_instruction(statement);
    }
  }

  void read_instruction(const std::string& statement) {
    Instruction instruction;
    instruction.text = statement;
    instruction.line = line_;
    std::string rest = statement;
    try {
      if (rest[0] == '@') {
        const std::size_t space = rest.find_first_of(" \t");
        instruction.guard_negated = rest[1] == '!';
        const std::size_t first = instruction.guard_negated ? 2 : 1;
        instruction.guard = Operands(names_, rest.substr(first, space - first)).at(0);
        rest = trimmed(rest.substr(space));
      }
      const std::size_t space = rest.find_first_of(" \t");
      Operands operands(names_, space == std::string::npos ? "" : rest.substr(space));
      decode(instruction, split(rest.substr(0, space), '.'), operands);
      if (instruction.op == Op::kBranch) branches_.emplace_back(kernel_->code.size(), operands.text(0));
    } catch (const std::exception& problem) {
      throw Fault(std::string(problem.what()) + ": line " + std::to_string(line_) + " of the PTX, " + statement);
    }
    if (instruction.op == Op::kLoad) {
      instruction.used = used_;
      used_ = ~std::uint64_t{0};
    }
    kernel_->code.push_back(instruction);
  }

  const std::string& text_;
  std::unique_ptr<Kernel> kernel_ = std::make_unique<Kernel>();
  Names names_;
  std::unordered_map<std::string, std::size_t> labels_;
  std::vector<std::pair<std::size_t, std::string>> branches_;
  std::uint64_t used_ = ~std::uint64_t{0};
  int line_ = 1;
};

}  // namespace

unsigned bytes_of(Type type) {
  switch (type) {
    case Type::kPredicate:
    case Type::kU8:
    case Type::kS8:
    case Type::kB8:
      return 1;
    case Type::kU16:
    case Type::kS16:
    case Type::kB16:
    case Type::kF16:
      return 2;
    case Type::kU64:
    case Type::kS64:
    case Type::kB64:
    case Type::kF64:
      return 8;
    default:
      return 4;
  }
}

bool is_signed(Type type) {
  return type == Type::kS8 || type == Type::kS16 || type == Type::kS32 || type == Type::kS64;
}

bool is_float(Type type) { return type == Type::kF16 || type == Type::kF32 || type == Type::kF64; }

Module::Module(std::string text) : text_(std::move(text)) {
  for (std::size_t at = 0; (at = text_.find(".entry", at)) != std::string::npos; at += 6) {
    const std::size_t first = text_.find_first_not_of(" \t\n", at + 6);
    entries_[trimmed(text_.substr(first, text_.find('(', first) - first))] = at;
  }
  for (std::size_t at = 0; (at = text_.find("\n.shared", at)) != std::string::npos; ++at) {
    shared_.push_back(text_.substr(at + 1, text_.find(';', at) - at - 1));
  }
}

const Kernel& Module::kernel(const std::string& name) {
  std::unique_ptr<Kernel>& kernel = kernels_[name];
  if (kernel == nullptr) {
    const auto found = entries_.find(name);
    if (found == entries_.end()) throw Fault("no kernel " + name + " in the PTX");
    kernel = Reader(text_, found->second, shared_).take();
  }
  return *kernel;
}

}  // namespace ptx
