"""The encoding of short texts in source files: what they are, and that ASCII stays as it is."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.sources.decode import Decoded, decode

SAMPLES = [
    ("cp1252", "Größe Länge für Straße Übergabe ändern Schlüssel Rückgabewert Prüfung"),
    ("cp1252", "créée où déjà paramètre août caractère problème été vérifié sûr"),
    ("cp1252", "ações função não número página padrão configuração"),
    ("cp1252", "año tamaño función según número válida código más"),
    ("cp1252", "åtgärd räknare för läs på försök användare"),
    ("cp1252", "päivämäärä tiedostoa käyttäjä määrä löytyi näkymä"),
    ("cp1252", "størrelse påkrævet køre længde første være"),
    ("cp1252", "più perché città è già però"),
    ("cp1250", "příliš žluťoučký proměnná větší hodnota než počet řádků"),
    ("iso-8859-2", "proměnná větší hodnota počet řádků vytvoř soubor"),
    ("cp1250", "długość wartość błąd zależność przykład użytkownik"),
    ("iso-8859-2", "długość wartość błąd zależność przykład"),
    ("cp1254", "değişken sayısı dosyayı aç kullanıcı geçerli değil"),
    ("cp1251", "переменная размер буфера ошибка файл строка"),
    ("koi8-r", "переменная размер буфера ошибка файл строка привет"),
    ("cp1253", "μεταβλητή αρχείο σφάλμα χρήστης τιμή"),
    ("gb18030", "中文 设置默认值 初始化 返回结果 文件名 错误信息 变量 测试数据"),
    ("big5", "設定預設值 初始化檔案 錯誤訊息 測試資料 使用者名稱"),
    ("cp932", "設定 テスト 初期化処理 ファイル名 戻り値を返す 注意"),
    ("euc-jp", "設定 テスト 初期化処理 ファイル名 戻り値を返す 文字列"),
    ("cp949", "설정 초기화 사용자 이름 오류가 발생했습니다 파일 주석"),
]
FRAMES = ["x = 1  # {}\n", "// {}\nint main() {{ return 0; }}\n", 'print("{}")\n', "{}"]


@pytest.mark.parametrize(("encoding", "words"), SAMPLES, ids=[f"{name} {words[:5]}" for name, words in SAMPLES])
def test_a_comment_in_code_is_read_in_its_encoding(encoding: str, words: str) -> None:
    for text in (*words.split(), words, words + "\n" + words):
        if text.isascii() or (len(text) < 5 and encoding.startswith(("cp125", "iso", "koi"))):
            continue  # less than a word in Latin or Cyrillic letters may be anything
        for frame in FRAMES:
            decoded = decode(frame.format(text).encode(encoding))
            assert isinstance(decoded, Decoded)
            assert decoded.text == frame.format(text), decoded.encoding
            assert not decoded.replaced


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "// Größe\n"),
        ("cp1252", "# ações\n"),
        ("gb18030", "x = 1  # 中文\n"),
        ("cp932", "# テスト\n"),
        ("euc-jp", "# 初期化\n"),
        ("koi8-r", "# привет\n"),
        ("big5", "# 設定\n"),
    ],
)
def test_the_guess_has_its_common_name(encoding: str, text: str) -> None:
    assert decode(text.encode(encoding)) == Decoded(text, encoding)


def test_signs_without_letters_are_western() -> None:
    for text in (
        "# © 2004 Foo\n",
        "# 20 °C ± 1\n",
        "x = 5  # µm\n",
        "“quoted” – 5 €\n",
        "naïve «café»\n",
        "x = 9  # 10 µs\n",
        "t = 5  # µs\n",
        "/* × */\n",
        "// ñ\n",
        "print('ñ')\n",
    ):
        assert decode(text.encode("cp1252")) == Decoded(text, "cp1252")


@pytest.mark.parametrize(
    ("raw", "text", "replaced"),
    [
        (b"s = '\xed\xa0\x80'\n", "s = '\ufffd\ufffd\ufffd'\n", 3),
        ("é".encode() + b" \xed\xa0\x80 \xe6\x97", "é \ufffd\ufffd\ufffd \ufffd", 4),
        ("déjà vu, été".encode() + b" \xc3 end", "déjà vu, été \ufffd end", 1),
        ("日本語".encode()[:-1], "日本\ufffd", 1),
    ],
)
def test_utf8_with_a_broken_place_stays_utf8(raw: bytes, text: str, replaced: int) -> None:
    assert decode(raw) == Decoded(text, "utf-8", replaced)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("cp866", "x = 1  # проверка\n"), ("cp866", "/* комментарий */\n"), ("cp874", "// ผิดพลาด\n")],
)
def test_what_is_half_utf8_by_chance_is_none(encoding: str, text: str) -> None:
    """Letters of many scripts, and what is no letter, are no damaged text."""
    assert decode(text.encode(encoding)) == Decoded(text, encoding)


def test_a_broken_byte_in_a_long_text_does_not_change_its_encoding() -> None:
    text = "# 设置默认值，返回文件名\n" * 100
    decoded = decode(text.encode("gb18030") + b"\xff\n")
    assert isinstance(decoded, Decoded)
    assert decoded.encoding == "gb18030" and decoded.replaced == 1
    assert decoded.text.startswith(text)


@given(st.binary(min_size=1, max_size=60).map(lambda high: bytes(byte | 0x80 for byte in high)), st.data())
def test_no_guess_changes_ascii(high: bytes, data: st.DataObject) -> None:
    """But for the second half of an East Asian character, which stands right behind a byte beyond ASCII."""
    cut = data.draw(st.integers(0, len(high)))
    decoded = decode(b"abc = 1 " + high[:cut] + b"\n  def g(x): " + high[cut:] + b"\nend")
    assert isinstance(decoded, Decoded)
    assert decoded.text.startswith("abc = 1 ") and decoded.text.endswith("\nend")
    assert "\n  def g(x): " in decoded.text


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return x\n",
        "# Размер буфера\nx = 1\n",
        "# これはテストです。一二三\nx = 1\n",
        "ab = 'ä'\n",
        "한국어 주석입니다\n",
        "தமிழ் மொழி\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_text_without_a_mark(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == Decoded(text, encoding)
    assert decode((text * 900).encode(encoding)) == Decoded(text * 900, encoding)


def test_marks_joiners_and_private_characters_are_text() -> None:
    text = "👩\u200d💻 \u200c\u200d \ue000\ue001\n"
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ):
        assert decode(mark + text.encode(encoding)) == Decoded(text, encoding)


def test_a_binary_is_told_by_its_first_8000_bytes() -> None:
    assert decode(b"x" * 8000 + b"\0x") == Decoded("x" * 8000 + "\0x", "utf-8")
    assert decode(b"x" * 7999 + b"\0x") == "binary file (holds NUL bytes)"
    assert decode(codecs.BOM_UTF8 + b"x\0y") == "binary file (holds NUL bytes)"
    assert decode(b"#!/bin/sh\n" * 900 + bytes(range(256)) * 30) == "binary file (begins as text)"
    for width in (2, 4):
        assert str(decode(b"".join(n.to_bytes(width, "little") for n in range(1, 500)))).startswith("binary")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp866", "x = 1  # следующий шаг\n"),
        ("cp932", "/* 次の手順 */\n"),
        ("iso-8859-15", "# prix: 5 € à payer\n"),
    ],
)
def test_a_word_or_two(encoding: str, text: str) -> None:
    assert decode(text.encode(encoding)) == Decoded(text, encoding)


def test_utf8_in_many_scripts_with_a_broken_place_stays_utf8() -> None:
    text = "# ქართული, አማርኛ, 日本語, עברית\n"
    assert decode(text.encode() + b"\xff\n") == Decoded(text + "\ufffd\n", "utf-8", 1)
