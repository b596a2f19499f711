// PNG and JPEG files <-> (H, W, C) tensors, uint8 or uint16.
//
// Reading applies the EXIF orientation and lays transparency over white, as imaging/ does in Python. A file
// that cannot be read or written raises std::runtime_error with the cause.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cerrno>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <jpeglib.h>  // needs <cstdio> before it
#include <jerror.h>
#include <png.h>

constexpr int64_t LARGEST = 500'000'000;  // px; more is refused before decoding, as a decompression bomb
constexpr const char* DAMAGED = "damaged image";

// Where libpng and libjpeg jump to on an error, and what they say.
struct Rescue {
    std::jmp_buf place;
    char cause[JMSG_LENGTH_MAX];
};

// Run calls of a C library; an error becomes an exception. `work` must own nothing: a jump skips destructors.
template <typename Work>
void guarded(Rescue& rescue, const std::string& failure, Work work) {
    if (setjmp(rescue.place)) throw std::runtime_error(failure + " (" + rescue.cause + ")");
    work();
}

[[noreturn]] inline void png_failed(png_structp png, png_const_charp message) {
    auto* rescue = static_cast<Rescue*>(png_get_error_ptr(png));
    std::snprintf(rescue->cause, sizeof rescue->cause, "%s", message);
    std::longjmp(rescue->place, 1);
}

inline void png_warned(png_structp, png_const_charp) {}

[[noreturn]] inline void jpeg_failed(j_common_ptr info) {
    auto* rescue = static_cast<Rescue*>(info->client_data);
    info->err->format_message(info, rescue->cause);
    std::longjmp(rescue->place, 1);
}

inline void jpeg_warned(j_common_ptr info, int) {
    if (info->err->msg_code == JWRN_HIT_MARKER) jpeg_failed(info);  // truncated: the rest would be gray
}

struct PngReader {
    Rescue rescue;
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &rescue, png_failed, png_warned);
    png_infop info = png_create_info_struct(png);
    ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
};

struct PngWriter {
    Rescue rescue;
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &rescue, png_failed, png_warned);
    png_infop info = png_create_info_struct(png);
    ~PngWriter() { png_destroy_write_struct(&png, &info); }
};

struct JpegReader {
    Rescue rescue;
    jpeg_error_mgr errors;
    jpeg_decompress_struct info{};
    ~JpegReader() { jpeg_destroy_decompress(&info); }
};

struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

inline File open_file(const std::filesystem::path& path, const char* mode) {
    File file(std::fopen(path.c_str(), mode));
    if (!file) throw std::runtime_error(std::strerror(errno));
    return file;
}

inline at::Tensor new_image(int64_t height, int64_t width, int64_t channels, at::ScalarType dtype) {
    if (height * width > LARGEST) throw std::runtime_error("more than 500 million pixels");
    return at::empty({height, width, channels}, dtype);
}

inline std::vector<unsigned char*> row_pointers(const at::Tensor& image) {
    auto* first = static_cast<unsigned char*>(image.data_ptr());
    std::vector<unsigned char*> rows(image.size(0));
    for (size_t y = 0; y < rows.size(); ++y) rows[y] = first + y * image.stride(0) * image.element_size();
    return rows;
}

// Lay (H, W, 2|4), whose last channel is alpha, over white: (H, W, 1|3).
template <typename Level>
at::Tensor over_white(const at::Tensor& image) {
    const int64_t colours = image.size(2) - 1, white = std::numeric_limits<Level>::max();
    at::Tensor flat = new_image(image.size(0), image.size(1), colours, image.scalar_type());
    const Level* in = image.const_data_ptr<Level>();
    Level* out = flat.mutable_data_ptr<Level>();
    for (int64_t i = 0; i < image.numel(); i += colours + 1) {
        const int64_t alpha = in[i + colours];
        for (int64_t c = 0; c < colours; ++c)
            *out++ = static_cast<Level>((in[i + c] * alpha + white * (white - alpha) + white / 2) / white);
    }
    return flat;
}

// Return what an EXIF block says of orientation, 1 where it says nothing. Source: TIFF 6.0, section 2.
inline int orientation_of(const unsigned char* exif, size_t size) {
    const bool little = size > 0 && exif[0] == 'I';
    const auto number = [&](size_t at, size_t bytes) {  // beyond the end of the block are zeros
        size_t value = 0;
        for (size_t i = 0; i < bytes; ++i) {
            const size_t place = little ? at + bytes - 1 - i : at + i;
            value = value << 8 | (place < size ? exif[place] : 0);
        }
        return value;
    };
    const size_t directory = number(4, 4);
    for (size_t i = 0; i < number(directory, 2); ++i) {
        const size_t entry = directory + 2 + 12 * i;  // tag, type, count, value
        if (number(entry, 2) == 0x0112) return static_cast<int>(number(entry + 8, 2));
    }
    return 1;
}

// Turn an image as its EXIF orientation asks; what is no orientation is taken for 1.
inline at::Tensor upright(const at::Tensor& image, int orientation) {
    switch (orientation) {
        case 2: return image.flip(1);
        case 3: return image.flip({0, 1});
        case 4: return image.flip(0);
        case 5: return image.transpose(0, 1);
        case 6: return image.transpose(0, 1).flip(1);
        case 7: return image.transpose(0, 1).flip({0, 1});
        case 8: return image.transpose(0, 1).flip(0);
        default: return image;
    }
}

// Read (H, W, 1|3), transparency laid over white; or as a `layer`, (H, W, 4).
inline at::Tensor read_png(std::FILE* file, bool layer = false) {
    PngReader reader;
    png_structp png = reader.png;
    png_infop info = reader.info;
    guarded(reader.rescue, DAMAGED, [&] {
        png_init_io(png, file);
        png_read_info(png, info);
        png_set_expand(png);  // palette to RGB, fewer than 8 bits to 8, a transparent colour to alpha
        png_set_swap(png);    // of 16 bits; the file is big-endian, the machine little-endian
        png_set_interlace_handling(png);
        if (layer) png_set_gray_to_rgb(png);
        png_read_update_info(png, info);
    });
    const int64_t height = png_get_image_height(png, info), width = png_get_image_width(png, info);
    const bool deep = png_get_bit_depth(png, info) == 16;
    at::Tensor image = new_image(height, width, png_get_channels(png, info), deep ? at::kUInt16 : at::kByte);
    std::vector<png_bytep> rows = row_pointers(image);
    guarded(reader.rescue, DAMAGED, [&] {
        png_read_image(png, rows.data());
        png_read_end(png, info);
    });
    png_bytep exif = nullptr;
    png_uint_32 size = 0;
    png_get_eXIf_1(png, info, &size, &exif);
    if (layer && image.size(2) != 4) throw std::runtime_error("no transparency: paint hints on a transparent layer");
    if (!layer && image.size(2) % 2 == 0) image = deep ? over_white<uint16_t>(image) : over_white<uint8_t>(image);
    return upright(image, orientation_of(exif, size));
}

inline at::Tensor read_jpeg(std::FILE* file) {
    JpegReader reader;
    jpeg_decompress_struct& info = reader.info;
    info.err = jpeg_std_error(&reader.errors);
    info.err->error_exit = jpeg_failed;
    info.err->emit_message = jpeg_warned;
    info.client_data = &reader.rescue;
    guarded(reader.rescue, DAMAGED, [&] {
        jpeg_create_decompress(&info);
        jpeg_stdio_src(&info, file);
        jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);  // where EXIF lies
        jpeg_read_header(&info, TRUE);
    });
    if (info.num_components == 4) throw std::runtime_error("a CMYK JPEG; convert it to RGB first");
    const int channels = info.num_components == 1 ? 1 : 3;
    info.out_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    at::Tensor image = new_image(info.image_height, info.image_width, channels, at::kByte);
    std::vector<JSAMPROW> rows = row_pointers(image);
    guarded(reader.rescue, DAMAGED, [&] {
        jpeg_start_decompress(&info);
        while (info.output_scanline < info.output_height)
            jpeg_read_scanlines(&info, &rows[info.output_scanline], 1);
    });
    int orientation = 1;
    for (auto* marker = info.marker_list; marker; marker = marker->next)
        if (marker->data_length > 6 && std::memcmp(marker->data, "Exif\0\0", 6) == 0)
            orientation = orientation_of(marker->data + 6, marker->data_length - 6);
    return upright(image, orientation);
}

// Read a file by what it holds, whatever its name: (H, W, 1|3), uint16 from a PNG of 16 bits, else uint8.
// A `layer` is a PNG with transparency, and keeps it: (H, W, 4).
inline at::Tensor read_image(const std::filesystem::path& path, bool layer = false) {
    if (exists(path) && !is_regular_file(path)) throw std::runtime_error("not a file");  // a pipe would block
    const File file = open_file(path, "rb");
    unsigned char start[8] = {};
    const size_t count = std::fread(start, 1, sizeof start, file.get());
    std::rewind(file.get());
    if (png_sig_cmp(start, 0, sizeof start) == 0) return read_png(file.get(), layer);
    if (layer) throw std::runtime_error("not a PNG: paint hints on a transparent layer");
    if (count > 1 && start[0] == 0xFF && start[1] == 0xD8) return read_jpeg(file.get());
    throw std::runtime_error("neither PNG nor JPEG");
}

inline void encode_png(std::FILE* file, const at::Tensor& image) {
    PngWriter writer;
    std::vector<png_bytep> rows = row_pointers(image);
    const png_uint_32 height = image.size(0), width = image.size(1);
    const int bits = 8 * static_cast<int>(image.element_size());
    guarded(writer.rescue, "cannot be written", [&] {
        png_init_io(writer.png, file);
        png_set_IHDR(writer.png, writer.info, width, height, bits, PNG_COLOR_TYPE_RGB, 0, 0, 0);
        png_set_compression_level(writer.png, 1);  // 1600 x 1200 px: 54 ms and 2.3 MB, by default 406 and 1.9
        png_set_filter(writer.png, 0, PNG_FILTER_UP);
        png_write_info(writer.png, writer.info);
        if (bits == 16) png_set_swap(writer.png);
        png_write_image(writer.png, rows.data());
        png_write_end(writer.png, writer.info);
    });
}

// Write (H, W, 3), contiguous and on the CPU, to a temporary name that is renamed when the file is complete.
inline void write_png(const std::filesystem::path& path, const at::Tensor& image) {
    // a name of its own: that of the picture may be as long as names can be
    const auto temporary = path.parent_path() / ('.' + std::to_string(std::random_device{}()) + ".tmp");
    try {
        File file = open_file(temporary, "wb");
        encode_png(file.get(), image);
        if (std::fclose(file.release())) throw std::runtime_error(std::strerror(errno));
        std::filesystem::rename(temporary, path);
    } catch (...) {
        std::error_code ignored;
        std::filesystem::remove(temporary, ignored);
        throw;
    }
}
