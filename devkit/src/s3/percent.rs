//! Percent encoding of paths, queries and, if a client asks with `encoding-type=url`, listed keys.

/// Undoes percent encoding. `None` if the result is not UTF-8. `+` stays itself: S3 clients encode spaces as `%20`.
pub(crate) fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.filter(|_| bytes[at] == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8(decoded).ok()
}

/// Encodes all but unreserved characters and slashes.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// The decoded value of `name` in a query string; empty if it has none.
pub(crate) fn query_value(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key).as_deref() == Some(name)).then(|| decode(value))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        for text in ["a/b", "ä b+c%41", "100%", "\u{1}"] {
            assert_eq!(decode(&encode(text)).as_deref(), Some(text));
        }
        assert_eq!(encode("a b/ä"), "a%20b/%C3%A4");
    }

    #[test]
    fn query_values_are_found_by_their_decoded_name() {
        let query = "list-type=2&prefix=a%2Fb&uploads";
        assert_eq!(query_value(query, "prefix").as_deref(), Some("a/b"));
        assert_eq!(query_value(query, "uploads").as_deref(), Some(""));
        assert_eq!(query_value(query, "type"), None);
    }
}
