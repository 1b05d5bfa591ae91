package encrypter

import (
	"bytes"
	"crypto/rand"
	"testing"
)

func TestBase64IsTheStandardLibrarys(t *testing.T) {
	random := make([]byte, 3<<12)
	_, _ = rand.Read(random)
	for i := range 1 << 12 { // every pair of letters, at the start and in the middle
		random[3*i], random[3*i+1] = byte(i>>4), byte(i<<4)
	}
	for length := range 200 {
		for _, src := range [][]byte{random[:length], random[len(random)-length:]} {
			got := appendBase64([]byte("before"), src)
			if want := base64url.AppendEncode([]byte("before"), src); !bytes.Equal(got, want) {
				t.Errorf("%d bytes: %q, want %q", length, got, want)
			}
		}
	}
	for shift := range 6 {
		src := random[shift:]
		if !bytes.Equal(appendBase64(nil, src), base64url.AppendEncode(nil, src)) {
			t.Errorf("from byte %d on: not what the standard library writes", shift)
		}
	}
}

func FuzzBase64(f *testing.F) {
	f.Add([]byte("The true sign of intelligence is not knowledge but imagination."), 3)
	f.Fuzz(func(t *testing.T, src []byte, room int) {
		dst := make([]byte, 1, 1+min(max(room, 0), 1<<12))
		if got, want := appendBase64(dst, src), base64url.AppendEncode([]byte{0}, src); !bytes.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

func BenchmarkBase64(b *testing.B) {
	src, dst := signedToken(959), make([]byte, 0, 2048)
	b.Run("impl=ours", func(b *testing.B) {
		for b.Loop() {
			appendBase64(dst, src)
		}
	})
	b.Run("impl=stdlib", func(b *testing.B) {
		for b.Loop() {
			base64url.AppendEncode(dst, src)
		}
	})
}
