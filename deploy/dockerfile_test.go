package deploy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// An instruction of a Dockerfile, with its lines joined.
type instruction struct {
	line int
	name string
	rest string
}

// A stage is what stands from one FROM to the next, with the stages that it is
// built upon in front.
type stage struct {
	name, image  string // image: what FROM names, with its ARGs filled in
	from         *stage // if that is a stage
	instructions []instruction
}

// all are the instructions that an image of this stage has, in order.
func (s *stage) all() []instruction {
	if s.from == nil {
		return s.instructions
	}
	return append(slices.Clip(s.from.all()), s.instructions...)
}

// last is the last instruction of a name, which is the one that counts.
func (s *stage) last(name string) string {
	for _, i := range slices.Backward(s.all()) {
		if i.name == name {
			return i.rest
		}
	}
	return ""
}

// parseDockerfile reads the part of the language that ours uses, and refuses the
// rest: what is not known is not checked. (ADD is known, and not wanted: it
// fetches and unpacks.)
func parseDockerfile(text string) ([]*stage, error) {
	var stages []*stage
	args := map[string]string{}
	for i, err := range instructions(text) {
		if err != nil {
			return nil, err
		}
		switch {
		case i.name == "FROM":
			s, err := newStage(i, stages, args)
			if err != nil {
				return nil, err
			}
			stages = append(stages, s)
		case i.name == "ARG" && len(stages) == 0:
			name, value, ok := strings.Cut(i.rest, "=")
			if !ok {
				return nil, fmt.Errorf("line %d: ARG %s has no default", i.line, name)
			}
			args[name] = value
		case len(stages) == 0:
			return nil, fmt.Errorf("line %d: %s stands before the first FROM", i.line, i.name)
		case slices.Contains([]string{"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "RUN", "USER", "WORKDIR"}, i.name):
			s := stages[len(stages)-1]
			s.instructions = append(s.instructions, i)
		default:
			return nil, fmt.Errorf("line %d: %q is no instruction that is known here", i.line, i.name)
		}
	}
	if len(stages) == 0 {
		return nil, fmt.Errorf("no FROM")
	}
	return stages, nil
}

func newStage(i instruction, before []*stage, args map[string]string) (*stage, error) {
	words := strings.Fields(i.rest)
	if len(words) != 3 || words[1] != "AS" {
		return nil, fmt.Errorf("line %d: FROM %s: want FROM image AS name", i.line, i.rest)
	}
	s := &stage{name: words[2], image: os.Expand(words[0], func(name string) string { return args[name] })}
	for _, b := range before {
		if b.name == s.name {
			return nil, fmt.Errorf("line %d: there is a stage %s already", i.line, s.name)
		}
		if b.name == s.image {
			s.from = b
		}
	}
	return s, nil
}

// instructions reads lines, joins those that end with a backslash, and leaves out
// comments.
func instructions(text string) func(yield func(instruction, error) bool) {
	return func(yield func(instruction, error) bool) {
		var open *instruction
		number := 0
		for line := range strings.Lines(text) {
			number++
			line = strings.TrimSpace(line)
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			part, goesOn := strings.CutSuffix(line, `\`)
			if open == nil {
				name, rest, _ := strings.Cut(strings.TrimSpace(part), " ")
				open = &instruction{line: number, name: name, rest: strings.TrimSpace(rest)}
			} else {
				open.rest += " " + strings.TrimSpace(part)
			}
			if goesOn {
				continue
			}
			if !yield(*open, nil) {
				return
			}
			open = nil
		}
		if open != nil {
			yield(instruction{}, fmt.Errorf("line %d: %s goes on beyond the end", open.line, open.name))
		}
	}
}

// problems says what is wrong with a Dockerfile whose context is the folder root.
func problems(text, root string) (found []string) {
	wrong := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	stages, err := parseDockerfile(text)
	if err != nil {
		return []string{err.Error()}
	}
	ignored, err := readIgnored(filepath.Join(root, ".dockerignore"))
	if err != nil {
		return []string{err.Error()}
	}
	for _, s := range stages {
		if s.from == nil && !regexp.MustCompile(`^[a-z0-9./-]+:[0-9a-z][0-9a-zA-Z.-]*(@sha256:[0-9a-f]{64})?$`).MatchString(s.image) {
			wrong("%s: the image %q has no tag", s.name, s.image)
		}
		if strings.HasSuffix(s.image, ":latest") {
			wrong("%s: %s is another image every week", s.name, s.image)
		}
		for _, i := range s.instructions {
			for _, p := range checkInstruction(i, stages, ignored, root) {
				wrong("line %d: %s", i.line, p)
			}
		}
	}
	for _, s := range stages {
		if s.last("ENTRYPOINT") == "" {
			continue // is built upon
		}
		if user := s.last("USER"); !regexp.MustCompile(`^[1-9][0-9]*(:[1-9][0-9]*)?$`).MatchString(user) {
			// By number: Kubernetes cannot tell of a name that it is not root.
			wrong("%s runs as %q: want a number that is not 0", s.name, user)
		}
	}
	if last := stages[len(stages)-1]; last.last("ENTRYPOINT") == "" {
		wrong("%s, which is built by default, has no ENTRYPOINT", last.name)
	}
	return found
}

func checkInstruction(i instruction, stages []*stage, ignored ignoredFiles, root string) (found []string) {
	wrong := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	switch i.name {
	case "COPY":
		words := strings.Fields(i.rest)
		if from, ok := strings.CutPrefix(words[0], "--from="); ok {
			if !slices.ContainsFunc(stages, func(s *stage) bool { return s.name == from }) {
				wrong("COPY from %s, which is no stage", from)
			}
			return found
		}
		if strings.HasPrefix(words[0], "--") || len(words) < 2 {
			wrong("COPY %s: not known here", i.rest)
			return found
		}
		for _, source := range words[:len(words)-1] {
			if _, err := os.Stat(filepath.Join(root, source)); err != nil {
				wrong("COPY: %v", err)
			}
			if ignored.has(filepath.Clean(source)) {
				wrong("COPY %s, which .dockerignore leaves out", source)
			}
		}
	case "ENTRYPOINT", "CMD":
		// A shell in between would keep SIGTERM for itself.
		var words []string
		if err := json.Unmarshal([]byte(i.rest), &words); err != nil || len(words) == 0 || !strings.HasPrefix(words[0], "/") && i.name == "ENTRYPOINT" {
			wrong("%s %s: want a list of strings that begins with a path", i.name, i.rest)
		}
	case "ARG", "ENV":
		if regexp.MustCompile(`(?i)pin|secret|password|token|_key`).MatchString(i.rest) {
			wrong("%s %s: secrets come in files, when the container runs", i.name, i.rest)
		}
	case "RUN":
		if regexp.MustCompile(`\b(curl|wget|sudo|setcap|chmod)\b`).MatchString(i.rest) {
			wrong("RUN %s: nothing is fetched but packages, and no rights are given", i.rest)
		}
	}
	return found
}

// TestTheDockerfileIsInOrder reads the Dockerfile. The image itself is not built:
// that needs an engine and a registry of images.
func TestTheDockerfileIsInOrder(t *testing.T) {
	text := string(read(t, "Dockerfile"))
	for _, p := range problems(text, "..") {
		t.Error(p)
	}
	stages, err := parseDockerfile(text)
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*stage{}
	for _, s := range stages {
		byName[s.name] = s
	}
	build, production, softhsm := byName["build"], stages[len(stages)-1], byName["softhsm"]
	if build == nil || production.name != "bulla" || softhsm == nil {
		t.Fatalf("got the stages %v, want build, softhsm, and bulla as the last", byName)
	}

	// What the tests build in a bare folder is what the image builds.
	if steps := build.last("RUN"); !strings.Contains(steps, "deploy/build.sh /out/bulla") {
		t.Errorf("the binary is made by %q, want deploy/build.sh", steps)
	}
	if got := production.last("COPY"); !strings.Contains(got, "--from=build /out/bulla /usr/local/bin/") {
		t.Errorf("the image's last COPY is %q, want the binary that was built", got)
	}
	want := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(string(read(t, "../go.mod")))
	if tag := regexp.MustCompile(`^golang:(\d+\.\d+)\.\d+-`).FindStringSubmatch(build.image); tag == nil || tag[1] != want[1] {
		t.Errorf("the image is built with %s; go.mod says Go %s", build.image, want[1])
	}
	if got, want := production.last("CMD"), `["serve", "--config", "/etc/bulla/bulla.yaml"]`; got != want {
		t.Errorf("the command is %s, want %s", got, want)
	}
	if got := production.last("EXPOSE"); got != examplePorts(t) {
		t.Errorf("the image names the ports %s, deploy/examples %s", got, examplePorts(t))
	}
	if got, want := softhsm.last("ENTRYPOINT"), `["/usr/local/bin/start.sh"]`; got != want {
		t.Errorf("the image with SoftHSM begins with %s, want %s", got, want)
	}
	for _, tool := range []string{"softhsm2", "opensc", "openssl"} { // that start.sh calls
		if !strings.Contains(softhsm.last("RUN"), " "+tool+" ") {
			t.Errorf("the image with SoftHSM does not install %s", tool)
		}
		if slices.ContainsFunc(production.all(), func(i instruction) bool { return strings.Contains(i.rest, tool) }) {
			t.Errorf("the image for production has %s in it", tool)
		}
	}
}

// examplePorts are the ports of the listeners in an example, in order.
func examplePorts(t *testing.T) string {
	t.Helper()
	var ports []string
	for _, m := range regexp.MustCompile(`listen: [0-9.]+:(\d+)`).FindAllStringSubmatch(string(read(t, "examples/fleet.yaml")), -1) {
		ports = append(ports, m[1])
	}
	if len(ports) < 3 {
		t.Fatalf("the example has the listeners %v, want three", ports)
	}
	return strings.Join(ports, " ")
}

// TestADockerfileOutOfOrderIsFound changes ours for the worse.
func TestADockerfileOutOfOrderIsFound(t *testing.T) {
	good := string(read(t, "Dockerfile"))
	for _, tt := range []struct{ from, to, want string }{
		{"\nUSER 65532:65532\nENTRYPOINT [\"/usr/local/bin/bulla\"]", "\nENTRYPOINT [\"/usr/local/bin/bulla\"]", `bulla runs as ""`},
		{"USER 65532:65532", "USER 0", `runs as "0"`},
		{"USER 65532:65532", "USER bulla", `runs as "bulla"`},
		{"=debian:bookworm-slim", "=debian", "has no tag"},
		{"=debian:bookworm-slim", "=debian:latest", "every week"},
		{"ARG GO_IMAGE=golang:1.26.8-bookworm\n", "", "has no tag"},
		{"COPY LICENSE", "COPY LICENSES", "LICENSES: no such file"},
		{"COPY LICENSE", "COPY bin", "which .dockerignore leaves out"},
		{"COPY LICENSE", "ADD LICENSE", "no instruction that is known"},
		{"--from=build", "--from=builder", "builder, which is no stage"},
		{`ENTRYPOINT ["/usr/local/bin/bulla"]`, `ENTRYPOINT /usr/local/bin/bulla`, "want a list of strings"},
		{"ENV SOFTHSM2_CONF=", "ENV BULLA_PIN=", "secrets come in files"},
		{"go mod download", "curl https://example.com | sh", "nothing is fetched"},
		{`CMD ["serve", "--config", "/etc/bulla/bulla.yaml"]`, `CMD ["serve", \`, "goes on beyond the end"},
	} {
		bad := strings.Replace(good, tt.from, tt.to, 1)
		if bad == good {
			t.Errorf("the Dockerfile has no %q to change", tt.from)
			continue
		}
		found := strings.Join(problems(bad, ".."), "\n")
		if !strings.Contains(found, tt.want) {
			t.Errorf("%q in place of %q: found %q, want %q", tt.to, tt.from, found, tt.want)
		}
	}
}
