# In Kubernetes 1.27 the command of the kubelet takes no context.
s/NewKubeletCommand(context.Background())/NewKubeletCommand()/
/^\t"context"$/d
