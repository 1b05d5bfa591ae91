package check

import (
	"context"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// settings are those of bulla.yaml that the manifests have to agree with.
type settings struct {
	GRPC struct {
		Listen string
		TLS    map[string]string
	}
	HTTP struct {
		Listen string
		TLS    map[string]string
	}
	Ops   struct{ Listen string }
	Store struct{ Postgres map[string]any }
	Audit struct{ Path string }
	Cache struct{ Memory string }

	StateDir string `json:"state_dir"`
	Backends map[string]struct {
		PKCS11 *struct {
			Module  string
			PINFile string `json:"pin_file"`
		}
	}
}

// config is the bulla.yaml that the pod gets.
func config(t *testing.T, r *rendering) (string, settings) {
	t.Helper()
	text, ok := r.configs[0].Data["bulla.yaml"]
	if !ok {
		t.Fatal("the ConfigMap has no bulla.yaml")
	}
	var s settings
	if err := yaml.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	return text, s
}

// binary is the service: the one that BULLA_BINARY names, or one built now.
func binary(t *testing.T) string {
	t.Helper()
	if given := os.Getenv("BULLA_BINARY"); given != "" {
		return given
	}
	file := filepath.Join(t.TempDir(), "bulla")
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "../build.sh", file).CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v\n%s", err, out)
	}
	return file
}

// TestTheConfigurationIsGood asks the service itself.
func TestTheConfigurationIsGood(t *testing.T) {
	bulla := binary(t)
	each(t, func(t *testing.T, r *rendering, _ string) {
		text, _ := config(t, r)
		check := func(text string) (string, error) {
			file := filepath.Join(t.TempDir(), "bulla.yaml")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), bulla, "config", "check", file).CombinedOutput()
			return string(out), err
		}
		if out, err := check(text); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		if out, err := check(text + "\nnonsense: true\n"); err == nil {
			t.Errorf("the check passes what is wrong: %s", out)
		}
	})
}

// mounted is the files that a container finds, each with the Secret or ConfigMap
// that it comes from; and the folders that it can write to.
func mounted(t *testing.T, pod corev1.PodSpec) (files map[string]string, folders []string) {
	t.Helper()
	files = map[string]string{}
	for _, m := range pod.Containers[0].VolumeMounts {
		if m.SubPath != "" {
			t.Errorf("%s is mounted as a single file, which does not change when its secret does", m.MountPath)
		}
		i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 {
			t.Fatalf("there is no volume %s", m.Name)
		}
		v := pod.Volumes[i]
		switch {
		case v.Projected != nil && m.ReadOnly:
			if v.Projected.DefaultMode == nil || *v.Projected.DefaultMode != 0o440 {
				t.Errorf("the files in %s are not for owner and group alone", m.MountPath)
			}
			for _, source := range v.Projected.Sources {
				add := func(from string, items []corev1.KeyToPath) {
					if len(items) == 0 {
						t.Errorf("all of %s is mounted, not what is needed of it", from)
					}
					for _, i := range items {
						files[path.Join(m.MountPath, i.Path)] = from + "/" + i.Key
					}
				}
				switch {
				case source.Secret != nil:
					add("Secret "+source.Secret.Name, source.Secret.Items)
				case source.ConfigMap != nil:
					add("ConfigMap "+source.ConfigMap.Name, source.ConfigMap.Items)
				default:
					t.Errorf("volume %s has a source that is not expected", v.Name)
				}
			}
		case v.EmptyDir != nil:
			folders = append(folders, m.MountPath)
		default:
			t.Errorf("volume %s is not expected, or can be written to", v.Name)
		}
	}
	return files, folders
}

// TestWhatTheConfigurationNamesIsThere: every file that it reads is mounted, those
// that are secret from a Secret, and what it writes has a place.
func TestWhatTheConfigurationNamesIsThere(t *testing.T) {
	each(t, func(t *testing.T, r *rendering, _ string) {
		text, s := config(t, r)
		pod := r.deployments[0].Spec.Template.Spec
		files, folders := mounted(t, pod)
		file := pod.Containers[0].Args[len(pod.Containers[0].Args)-1]
		if got, want := files[file], "ConfigMap "+r.configs[0].Name+"/bulla.yaml"; got != want {
			t.Errorf("the service is told to read %s, which is %q; want %q", file, got, want)
		}
		named := 0
		for _, m := range regexp.MustCompile(`(\w+_file): "?([^",}\s]+)`).FindAllStringSubmatch(text, -1) {
			named++
			from, ok := files[path.Join(path.Dir(file), m[2])]
			if !ok {
				t.Errorf("%s is %s, which is not mounted", m[1], m[2])
			} else if !strings.HasPrefix(from, "Secret ") {
				t.Errorf("%s is from %s: what a pod needs and nobody else should read comes from a Secret", m[1], from)
			}
		}
		if want := len(s.GRPC.TLS) + len(s.HTTP.TLS); named < want+1 || want != 5 {
			t.Errorf("found %d files that the configuration names, of them %d of TLS", named, want)
		}
		if !slices.Contains(folders, s.StateDir) {
			t.Errorf("state_dir is %s; what can be written to is %v", s.StateDir, folders)
		}
		if s.Audit.Path != "-" {
			t.Errorf("the audit log goes to %s, which ends with the pod", s.Audit.Path)
		}
		if s.Store.Postgres == nil {
			t.Error("the store is no database that replicas share")
		}
		for name, b := range s.Backends {
			if b.PKCS11 != nil && !slices.ContainsFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
				return m.ReadOnly && strings.HasPrefix(b.PKCS11.Module, m.MountPath+"/")
			}) {
				t.Errorf("the module of backend %s, %s, is in no volume that is read-only", name, b.PKCS11.Module)
			}
		}
	})
}

// TestTheMemoryIsEnough: the process keeps itself to twice its cache and 192 MiB
// (cmd/bulla/serve.go); what C libraries take comes on top.
func TestTheMemoryIsEnough(t *testing.T) {
	each(t, func(t *testing.T, r *rendering, _ string) {
		_, s := config(t, r)
		mib, err := strconv.ParseInt(strings.TrimSuffix(s.Cache.Memory, "MiB"), 10, 64)
		if err != nil {
			t.Fatalf("cache.memory is %q, want MiB", s.Cache.Memory)
		}
		need := (2*mib + 192) << 20
		resources := r.deployments[0].Spec.Template.Spec.Containers[0].Resources
		if got := resources.Requests.Memory().Value(); got < need {
			t.Errorf("the pod asks for %d MiB of memory, and may take %d MiB", got>>20, need>>20)
		}
		if got := resources.Limits.Memory().Value(); got < need+need/4 {
			t.Errorf("the pod is killed at %d MiB, and Go alone may take %d MiB", got>>20, need>>20)
		}
	})
}

// TestDocumentedSecretsAreThoseThatAreMounted holds docs/deploy.md, which tells
// how to make them, against the manifests.
func TestDocumentedSecretsAreThoseThatAreMounted(t *testing.T) {
	page := read(t, "../../docs/deploy.md")
	each(t, func(t *testing.T, r *rendering, _ string) {
		files, _ := mounted(t, r.deployments[0].Spec.Template.Spec)
		for file, from := range files {
			secret, ok := strings.CutPrefix(from, "Secret ")
			if !ok {
				continue
			}
			name, key, _ := strings.Cut(secret, "/")
			if !regexp.MustCompile("(?m)^\\| `" + regexp.QuoteMeta(name) + "` \\|.*`" + regexp.QuoteMeta(key) + "`").MatchString(page) {
				t.Errorf("docs/deploy.md does not say that the Secret %s has a key %s (mounted as %s)", name, key, file)
			}
		}
	})
}
