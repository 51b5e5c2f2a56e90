package code

import "testing"

// BenchmarkFirstRun is a fresh context and its first print.
func BenchmarkFirstRun(b *testing.B) {
	for _, lang := range []string{"python", "javascript", "bash"} {
		b.Run(lang, func(b *testing.B) { benchFirst(b, lang) })
	}
}

func benchFirst(b *testing.B, lang string) {
	if _, err := languageNames[lang].find(searchPath, "/"); err != nil {
		b.Skip(err)
	}
	s := newSandbox(b)
	for b.Loop() {
		s.do(lang, "print(1)")
		b.StopTimer()
		s.call("DELETE", "/code/contexts?language="+lang, nil)
		b.StartTimer()
	}
}

// BenchmarkRun is a run in a context that has run before.
func BenchmarkRun(b *testing.B) {
	for _, lang := range []string{"python", "javascript", "bash"} {
		b.Run(lang, func(b *testing.B) {
			if _, err := languageNames[lang].find(searchPath, "/"); err != nil {
				b.Skip(err)
			}
			s := newSandbox(b)
			id := s.make(lang)
			for b.Loop() {
				s.in(id, "1")
			}
		})
	}
}
