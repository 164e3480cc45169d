//! WebP files of 160 by 120 pixels that libwebp has written: the left half red, the right half blue, with some noise.

/// By their names; through the left quarter of some all shines, and some are the first image of several.
pub const FILES: [(&str, &[u8]); 6] = [
    // With several groups of codes, and all of the transforms.
    ("lossless", include_bytes!("webp/lossless.webp")),
    ("lossless_alpha", include_bytes!("webp/lossless_alpha.webp")),
    ("few_colors", include_bytes!("webp/few_colors.webp")),
    ("lossy_alpha", include_bytes!("webp/lossy_alpha.webp")),
    ("animated", include_bytes!("webp/animated.webp")),
    // The first image is a part of the picture.
    ("animated_alpha", include_bytes!("webp/animated_alpha.webp")),
];
