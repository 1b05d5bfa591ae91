package jwks

import (
	"fmt"
	"strconv"
)

// maxQuoted is how much of a string from the document a message repeats, in
// bytes as printed: enough to recognize a kid, too little to flood a log.
const maxQuoted = 64

// quote makes a string from the document safe to print: on one line, in
// quotes, cut to maxQuoted.
func quote(s string) string {
	printed := 0
	for i, r := range s {
		printed += len(strconv.QuoteRuneToASCII(r)) - len("''")
		if printed > maxQuoted {
			return strconv.QuoteToASCII(s[:i]) + "..."
		}
	}
	return strconv.QuoteToASCII(s)
}

// quoteAll quotes the first few of a list.
func quoteAll(list []string) string {
	const most = 4
	text := "["
	for i, s := range list {
		if i > 0 {
			text += ", "
		}
		if i == most {
			text += fmt.Sprintf("and %d more", len(list)-most)
			break
		}
		text += quote(s)
	}
	return text + "]"
}

// keyName names a key by its place in the document and, if it has one, by
// its kid.
func keyName(index int, kid string) string {
	if kid == "" {
		return fmt.Sprintf("keys[%d]", index)
	}
	return fmt.Sprintf("keys[%d] (kid %s)", index, quote(kid))
}
