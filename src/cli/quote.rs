//! Text as a shell reads it back.

/// One shell word.
pub(super) fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./_-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A `printf` that writes these bytes, whatever they are.
pub(super) fn printf(bytes: &[u8]) -> String {
    let escape = |(at, byte): (usize, &u8)| match byte {
        // Else it would read as an option.
        b'-' if at == 0 => format!("\\{byte:03o}"),
        b'%' => "%%".to_owned(),
        b'\n' => r"\n".to_owned(),
        b'\'' | b'\\' => format!("\\{byte:03o}"),
        0x20..=0x7e => char::from(*byte).to_string(),
        _ => format!("\\{byte:03o}"),
    };
    format!("printf '{}'", bytes.iter().enumerate().map(escape).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    fn sh(script: &str) -> Vec<u8> {
        Command::new("/bin/sh").args(["-c", script]).output().unwrap().stdout
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_shell_reads_back_what_was_quoted(text in "[a-z'\"$`\\\\ \n*?!é;&|<>(){}~#%-]{0,30}") {
            prop_assert_eq!(sh(&format!("printf %s {}", word(&text))), text.into_bytes());
        }

        #[test]
        fn printf_writes_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(sh(&printf(&bytes)), bytes);
        }

        #[test]
        fn printf_has_no_options(bytes in "-[-a-z%\\\\]{0,5}") {
            prop_assert_eq!(sh(&printf(bytes.as_bytes())), bytes.into_bytes());
        }
    }
}
