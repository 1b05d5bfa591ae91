package signer

import "iter"

// The functions of this file walk over JSON that has been found valid; on
// anything else they may panic.

// jsonSpace is the white space of JSON (RFC 8259, section 2).
const jsonSpace = " \t\r\n"

// skipSpace is the index of the first byte from i on that is not white space.
func skipSpace(json []byte, i int) int {
	for json[i] == ' ' || json[i] == '\t' || json[i] == '\r' || json[i] == '\n' {
		i++
	}
	return i
}

// skipString is the index behind the string that begins at i.
func skipString(json []byte, i int) int {
	for i++; json[i] != '"'; i++ {
		if json[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// skipValue is the index behind the value that begins at i. The value lies
// inside an object or array.
func skipValue(json []byte, i int) int {
	switch json[i] {
	case '"':
		return skipString(json, i)
	case '{', '[':
		depth := 0
		for {
			switch json[i] {
			case '"':
				i = skipString(json, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
	}
	for {
		switch json[i] {
		case ',', '}', ']', ' ', '\t', '\r', '\n':
			return i
		}
		i++
	}
}

// members are the quoted names and the values of an object's members.
func members(object []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		for i := skipSpace(object, 1); object[i] != '}'; {
			nameEnd := skipValue(object, i)
			value := skipSpace(object, skipSpace(object, nameEnd)+1) // behind the colon
			end := skipValue(object, value)
			if !yield(object[i:nameEnd], object[value:end]) {
				return
			}
			if i = skipSpace(object, end); object[i] == ',' {
				i = skipSpace(object, i+1)
			}
		}
	}
}

// memberOf is the value of an object's member of that unescaped name.
func memberOf(object []byte, name string) (value []byte, ok bool) {
	for quoted, value := range members(object) {
		if text, err := textOf(quoted); err == nil && text == name {
			return value, true
		}
	}
	return nil, false
}

// depthWithin reports whether a value nests at most limit levels.
func depthWithin(json []byte, limit int) bool {
	depth := 0
	for i := 0; i < len(json); i++ {
		switch json[i] {
		case '"':
			i = skipString(json, i) - 1
		case '{', '[':
			if depth++; depth > limit {
				return false
			}
		case '}', ']':
			depth--
		}
	}
	return true
}
