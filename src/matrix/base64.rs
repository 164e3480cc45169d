//! Unpadded base64, in both alphabets.
//!
//! Spec: appendices, "Unpadded Base64". Decoding takes either alphabet, and padding too, and ignores stray bits in the last
//! character, as Synapse's decoder does. That one also passes over whatever is in no alphabet, which here is no base64.

use base64::{
    Engine,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

const CONFIG: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_encode_padding(false)
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const ENGINE: GeneralPurpose = GeneralPurpose::new(&STANDARD, CONFIG);
const URL_SAFE_ENGINE: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, CONFIG);

/// Encodes with the standard alphabet.
pub fn encode(bytes: &[u8]) -> String {
    ENGINE.encode(bytes)
}

/// Encodes with the URL-safe alphabet.
pub fn encode_url_safe(bytes: &[u8]) -> String {
    URL_SAFE_ENGINE.encode(bytes)
}

/// Decodes either alphabet, and a text that mixes them. `None` where it is not base64.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let to_standard = |byte| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => other,
    };
    let text: Vec<u8> = text.bytes().map(to_standard).collect();
    ENGINE.decode(text).ok()
}
