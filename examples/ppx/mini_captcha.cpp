// A word of unknown length and letters, seen as a noisy image of 5 × 11 pixels.
#include <etalumis/simulator.hpp>

#include <array>
#include <string>
#include <vector>

using etalumis::Array;
using etalumis::Categorical;
using etalumis::Normal;
using etalumis::Tensor;

constexpr int rows = 5, columns = 11, pitch = 4;
// Letters of three columns and five rows: E F H I L O T U.
const std::array<const char*, 8> font{"####..##.#..###", "####..##.#..#..", "#.##.#####.##.#", "###.#..#..#.###",
                                      "#..#..#..#..###", "####.##.##.####", "###.#..#..#..#.", "#.##.##.##.####"};

double mini_captcha() {
    const auto length = etalumis::sample(Categorical{1.0 / 3, 1.0 / 3, 1.0 / 3}, "num_letters") + 1;
    const Categorical letters(std::vector<double>(font.size(), 1.0 / 8));
    std::vector<double> image(rows * columns, 0.0);
    for (int place = 0; place < length; ++place) {
        const char* glyph = font[static_cast<std::size_t>(etalumis::sample(letters, "letter" + std::to_string(place)))];
        for (int pixel = 0; pixel < 3 * rows; ++pixel) {
            const int at = pixel / 3 * columns + place * pitch + pixel % 3;
            if (glyph[pixel] == '#') image[static_cast<std::size_t>(at)] = 1.0;
        }
    }
    etalumis::observe(Array<Normal>(Tensor(image, {rows, columns}), 0.8), "image");
    return static_cast<double>(length);
}

int main(int argc, char** argv) {
    etalumis::serve(mini_captcha, "MiniCaptcha", argc > 1 ? argv[1] : "tcp://*:5555");
}
