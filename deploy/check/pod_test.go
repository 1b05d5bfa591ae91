package check

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// drain is how long the service lets calls in flight end when it is told to stop.
const drain = 15 * time.Second

// podProblems says where a pod has more rights than it needs.
func podProblems(pod *corev1.PodSpec) (found []string) {
	wrong := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		wrong("the pod has a token for the cluster's API")
	}
	if pod.HostNetwork || pod.HostPID || pod.HostIPC || pod.ShareProcessNamespace != nil && *pod.ShareProcessNamespace {
		wrong("the pod shares namespaces of its node, or one among its containers")
	}
	s := pod.SecurityContext
	switch {
	case s == nil:
		return append(found, "the pod has no securityContext")
	case s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.RunAsUser == nil || *s.RunAsUser == 0 || s.RunAsGroup == nil || *s.RunAsGroup == 0:
		wrong("the pod may run as root")
	case s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault:
		wrong("the pod has no seccomp profile")
	case s.FSGroup == nil || *s.FSGroup != *s.RunAsGroup:
		wrong("fsGroup is not the pod's group, which could not read the secrets then")
	}
	for _, c := range append(slices.Clone(pod.InitContainers), pod.Containers...) {
		for _, p := range containerProblems(c) {
			wrong("container %s: %s", c.Name, p)
		}
	}
	for _, v := range pod.Volumes {
		if v.HostPath != nil {
			wrong("volume %s is a folder of the node", v.Name)
		}
		if v.EmptyDir != nil && v.EmptyDir.SizeLimit == nil {
			wrong("volume %s may fill the node's disk", v.Name)
		}
	}
	return found
}

func containerProblems(c corev1.Container) (found []string) {
	wrong := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	s := c.SecurityContext
	switch {
	case s == nil:
		wrong("no securityContext")
	case s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation:
		wrong("may gain privileges")
	case s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem:
		wrong("can write to its root file system")
	case s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0:
		wrong("has capabilities")
	case s.Privileged != nil && *s.Privileged, s.RunAsUser != nil, s.RunAsNonRoot != nil, s.SeccompProfile != nil, s.ProcMount != nil:
		wrong("has a securityContext that goes against the pod's")
	}
	// Not even from a Secret: the environment is what whatever reads /proc sees.
	if len(c.Env)+len(c.EnvFrom) > 0 {
		wrong("has an environment of its own; secrets come in files, settings in bulla.yaml")
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
		wrong("does not say what it needs of CPU and memory, or how much memory it may have")
	}
	if i := strings.LastIndex(c.Image, ":"); i < 0 || strings.HasSuffix(c.Image, ":latest") {
		wrong("the image %s has no version", c.Image)
	}
	for _, p := range c.Ports {
		if p.HostPort != 0 {
			wrong("takes the node's port %d", p.HostPort)
		}
	}
	return found
}

func TestThePodHasNoRightsThatItDoesNotNeed(t *testing.T) {
	each(t, func(t *testing.T, r *rendering, _ string) {
		pod := &r.deployments[0].Spec.Template.Spec
		for _, p := range podProblems(pod) {
			t.Error(p)
		}
		for _, a := range r.accounts {
			if a.Name != pod.ServiceAccountName || a.AutomountServiceAccountToken == nil || *a.AutomountServiceAccountToken {
				t.Errorf("the service account %s is not the pod's %s, or has a token", a.Name, pod.ServiceAccountName)
			}
		}
		for _, n := range r.namespaces {
			if got := n.Labels["pod-security.kubernetes.io/enforce"]; n.Name != "bulla" || got != "restricted" {
				t.Errorf("the namespace %s enforces %q, want restricted", n.Name, got)
			}
		}
	})
}

// TestAPodWithRightsIsFound gives ours rights, one at a time.
func TestAPodWithRightsIsFound(t *testing.T) {
	yes, root := true, int64(0)
	for name, change := range map[string]func(p *corev1.PodSpec){
		"token for the cluster's API":       func(p *corev1.PodSpec) { p.AutomountServiceAccountToken = nil },
		"shares namespaces":                 func(p *corev1.PodSpec) { p.HostNetwork = true },
		"may run as root":                   func(p *corev1.PodSpec) { p.SecurityContext.RunAsUser = &root },
		"no seccomp profile":                func(p *corev1.PodSpec) { p.SecurityContext.SeccompProfile.Type = corev1.SeccompProfileTypeUnconfined },
		"could not read the secrets":        func(p *corev1.PodSpec) { p.SecurityContext.FSGroup = nil },
		"may gain privileges":               func(p *corev1.PodSpec) { p.Containers[0].SecurityContext.AllowPrivilegeEscalation = &yes },
		"can write to its root file system": func(p *corev1.PodSpec) { p.Containers[0].SecurityContext.ReadOnlyRootFilesystem = nil },
		"has capabilities": func(p *corev1.PodSpec) {
			p.Containers[0].SecurityContext.Capabilities.Add = []corev1.Capability{"SYS_PTRACE"}
		},
		"container hsm-client: has capabilities": func(p *corev1.PodSpec) { p.InitContainers[0].SecurityContext.Capabilities.Drop = nil },
		"goes against the pod's":                 func(p *corev1.PodSpec) { p.Containers[0].SecurityContext.Privileged = &yes },
		"secrets come in files": func(p *corev1.PodSpec) {
			p.Containers[0].Env = []corev1.EnvVar{{Name: "PIN", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{Key: "pin"}}}}
		},
		"how much memory":    func(p *corev1.PodSpec) { p.Containers[0].Resources.Limits = nil },
		"has no version":     func(p *corev1.PodSpec) { p.Containers[0].Image = "registry.example.com/bulla" },
		"takes the node's":   func(p *corev1.PodSpec) { p.Containers[0].Ports[0].HostPort = 8443 },
		"folder of the node": func(p *corev1.PodSpec) { p.Volumes[0].HostPath = &corev1.HostPathVolumeSource{Path: "/"} },
		"fill the node's disk": func(p *corev1.PodSpec) {
			p.Volumes = append(p.Volumes, corev1.Volume{VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
		},
	} {
		r, err := render(manifests + "/overlays/pkcs11")
		if err != nil {
			t.Fatal(err)
		}
		pod := &r.deployments[0].Spec.Template.Spec
		change(pod)
		if found := strings.Join(podProblems(pod), "\n"); !strings.Contains(found, name) {
			t.Errorf("found %q, want %q", found, name)
		}
	}
}

// TestThePodStartsAndEndsInOrder: probes ask the operators' listener, and there is
// time for calls in flight to end.
func TestThePodStartsAndEndsInOrder(t *testing.T) {
	each(t, func(t *testing.T, r *rendering, _ string) {
		d := r.deployments[0]
		pod := d.Spec.Template.Spec
		c := pod.Containers[0]
		for name, tt := range map[string]struct {
			probe *corev1.Probe
			path  string
		}{"startup": {c.StartupProbe, "/livez"}, "liveness": {c.LivenessProbe, "/livez"}, "readiness": {c.ReadinessProbe, "/readyz"}} {
			if tt.probe == nil || tt.probe.HTTPGet == nil || tt.probe.HTTPGet.Path != tt.path || tt.probe.HTTPGet.Port.StrVal != "ops" {
				t.Errorf("the %s probe is %v, want %s of the port ops", name, tt.probe, tt.path)
			}
		}
		if c.Lifecycle == nil || c.Lifecycle.PreStop == nil || c.Lifecycle.PreStop.Sleep == nil {
			t.Fatal("nothing waits for those that route to the pod to hear that it goes")
		}
		wait := time.Duration(c.Lifecycle.PreStop.Sleep.Seconds) * time.Second
		grace := pod.TerminationGracePeriodSeconds
		if grace == nil || time.Duration(*grace)*time.Second < wait+drain+5*time.Second {
			t.Errorf("the pod is killed after %v s: it waits %v, and calls in flight may take %v", grace, wait, drain)
		}
		if d.Spec.Replicas != nil {
			t.Error("the Deployment says how many replicas there are, which is the autoscaler's to say")
		}
		if s := d.Spec.Strategy.RollingUpdate; s == nil || s.MaxUnavailable == nil || s.MaxUnavailable.IntValue() != 0 {
			t.Error("an upgrade takes a replica away before there is another")
		}
		hosts := 0
		for _, c := range pod.TopologySpreadConstraints {
			if c.TopologyKey == "kubernetes.io/hostname" && c.WhenUnsatisfiable == corev1.DoNotSchedule {
				hosts++
			}
		}
		if hosts != 1 {
			t.Error("the replicas may all be on one node")
		}
		a := r.autoscalers[0].Spec
		if a.ScaleTargetRef.Kind != "Deployment" || a.ScaleTargetRef.Name != d.Name || a.MinReplicas == nil || *a.MinReplicas < 3 || a.MaxReplicas < *a.MinReplicas {
			t.Errorf("the autoscaler's target is %v, with %v to %d replicas", a.ScaleTargetRef, a.MinReplicas, a.MaxReplicas)
		}
		if b := r.disruption[0].Spec; b.MaxUnavailable == nil || b.MaxUnavailable.IntValue() != 1 {
			t.Errorf("the disruption budget lets %v replicas go at once, want 1", b.MaxUnavailable)
		}
	})
}
