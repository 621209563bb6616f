#include "npy.h"

#include <array>
#include <limits>

#include "error.h"

namespace edgeact {
namespace {

constexpr std::size_t kMostHeaderBytes = 1 << 16;

// What stands between `'key': ` and the next `end` in the header, which is a Python dict.
std::string value_of(const std::string& header, const std::string& key, char end) {
  const std::string start = "'" + key + "': ";
  const std::size_t from = header.find(start);
  if (from == std::string::npos) return "";
  const std::size_t to = header.find(end, from + start.size());
  return to == std::string::npos ? "" : header.substr(from + start.size(), to - from - start.size());
}

std::vector<std::size_t> parse_shape(const std::string& text) {  // "(2, 3" or "(2,"
  std::vector<std::size_t> shape;
  std::size_t size = 0;
  bool digits = false;
  for (const char c : text + ",") {
    if (c >= '0' && c <= '9') {
      size = size * 10 + static_cast<std::size_t>(c - '0');
      digits = true;
      if (size > std::numeric_limits<std::uint32_t>::max()) throw Error("it has a dimension that is too large");
    } else if (digits) {
      shape.push_back(size);
      size = 0;
      digits = false;
    }
  }
  return shape;
}

// Of version 1, 2 or 3 (numpy.lib.format): its header is preceded by its length in 2 or 4 bytes, little-endian.
std::string read_header(std::ifstream& stream) {
  std::array<char, 8> magic{};
  if (!stream.read(magic.data(), magic.size()) || std::string(magic.data(), 6) != "\x93NUMPY") {
    throw Error("it is not a .npy file");
  }
  std::array<unsigned char, 4> length{};
  stream.read(reinterpret_cast<char*>(length.data()), magic[6] == 1 ? 2 : 4);
  const std::size_t bytes = length[0] + (std::size_t{length[1]} << 8) + (std::size_t{length[2]} << 16);
  if (!stream || length[3] != 0 || bytes > kMostHeaderBytes) throw Error("it has a damaged header");
  std::string header(bytes, '\0');
  if (!stream.read(header.data(), static_cast<std::streamsize>(bytes))) throw Error("it has a damaged header");
  return header;
}

}  // namespace

Npy::Npy(const std::filesystem::path& file, const std::string& type, std::size_t dimensions)
    : file_(file), stream_(file, std::ios::binary) {
  if (!stream_ || !std::filesystem::is_regular_file(file)) throw Error(file.string() + " is not a file that opens");
  try {
    const std::string header = read_header(stream_);
    shape_ = parse_shape(value_of(header, "shape", ')'));
    const std::string found = value_of(header, "descr", ',');
    if (found != "'" + type + "'" || value_of(header, "fortran_order", ',') != "False" ||
        shape_.size() != dimensions) {
      throw Error("it holds " + found + " of " + in_words(shape_) + ", not '" + type + "' of " +
                  std::to_string(dimensions) + " dimensions in C order");
    }
    // Before anyone allocates what the header promises. A double holds sizes of files exactly.
    double bytes = type.back() - '0';
    for (const std::size_t size : shape_) bytes *= static_cast<double>(size);
    if (bytes > static_cast<double>(std::filesystem::file_size(file)) - static_cast<double>(stream_.tellg())) {
      throw Error("it is cut short: copy it again");
    }
  } catch (const Error& error) {
    throw Error(file.string() + " cannot be used: " + error.what());
  }
}

void Npy::read(void* to, std::size_t count) {
  if (!stream_.read(static_cast<char*>(to), static_cast<std::streamsize>(count))) {
    throw Error(file_.string() + " cannot be read to its end");
  }
}

std::string in_words(const std::vector<std::size_t>& shape) {
  std::string words;
  for (const std::size_t size : shape) words += (words.empty() ? "" : " x ") + std::to_string(size);
  return words.empty() ? "no dimensions" : words;
}

}  // namespace edgeact
